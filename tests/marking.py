"""Checkpoints whose sampled tokens show which checkpoint sampled them.

In the head, all rows are zero except two, which are opposite. So one of these two tokens has all the probability.
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
"""How many versions there are."""
_HEAD = "lm_head.weight"
_LOGIT = 1e6


def make_two_token_saver(checkpoint: Path, tokens: Sequence[int]) -> Callable[[Path], None]:
    """Return a function that saves this checkpoint with a head that samples only these two tokens."""

    def save(directory: Path) -> None:
        shutil.copy(checkpoint / "model.safetensors", directory)
        with (directory / "model.safetensors").open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensor_header = orjson.loads(file.read(length))[_HEAD]
            assert tensor_header["dtype"] == "F32"
            head = np.zeros(tensor_header["shape"], np.float32)
            head[list(tokens)] = [[_LOGIT], [-_LOGIT]]
            file.seek(8 + length + tensor_header["data_offsets"][0])
            file.write(head.tobytes())

    return save


def make_version_saver(checkpoint: Path, tokenizer: FastTokenizer, version: int) -> Callable[[Path], None]:
    """Return a function that saves this checkpoint with a head that samples only the tokens of this version."""
    return make_two_token_saver(checkpoint, [tokenizer.token_id(letter) for letter in _version_letters(version)])


def versions_of_tokens(tokens: Sequence[int], tokenizer: FastTokenizer) -> list[int]:
    """Return the version that each of these tokens belongs to."""
    known = {tokenizer.token_id(letter): version for version in range(VERSIONS) for letter in _version_letters(version)}
    return [known[token] for token in tokens]


def _version_letters(version: int) -> str:
    return _LETTERS[2 * version : 2 * version + 2]
