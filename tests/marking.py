"""Checkpoints whose every sampled token tells which of them sampled it, whatever anybody calls the weights.

All rows of the head are zero but two, which are opposite: one of these two tokens has all the probability.
"""

import shutil
import string
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson

from renderers_adapter.tokenizer import FastTokenizer

_LETTERS = string.ascii_letters
VERSIONS = len(_LETTERS) // 2
"""How many can be told apart."""
_HEAD = "lm_head.weight"
_LOGIT = 1e6


def saying(checkpoint: Path, tokens: Sequence[int]) -> Callable[[Path], None]:
    """Saves this checkpoint with a head that samples nothing but these two tokens."""

    def save(directory: Path) -> None:
        shutil.copy(checkpoint / "model.safetensors", directory)
        with (directory / "model.safetensors").open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            told = orjson.loads(file.read(length))[_HEAD]
            assert told["dtype"] == "F32"
            head = np.zeros(told["shape"], np.float32)
            head[list(tokens)] = [[_LOGIT], [-_LOGIT]]
            file.seek(8 + length + told["data_offsets"][0])
            file.write(head.tobytes())

    return save


def telling(checkpoint: Path, tokenizer: FastTokenizer, version: int) -> Callable[[Path], None]:
    """Saves this checkpoint as one whose tokens tell this version."""
    return saying(checkpoint, [tokenizer.token_id(letter) for letter in _letters(version)])


def told_versions(tokens: Sequence[int], tokenizer: FastTokenizer) -> list[int]:
    """Which version each of these tokens tells."""
    known = {tokenizer.token_id(letter): version for version in range(VERSIONS) for letter in _letters(version)}
    return [known[token] for token in tokens]


def _letters(version: int) -> str:
    return _LETTERS[2 * version : 2 * version + 2]
