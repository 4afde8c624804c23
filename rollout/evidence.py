"""What an engine's answer proves about a turn, in the form that worker and trainer share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import ExpandedIds


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """`version` of the weights sampled the completion's tokens from `start` up to `end`."""

    version: str
    start: int
    end: int


def prompt_digest(ids: ExpandedIds, hashes: Sequence[str]) -> bytes:
    """Names a prompt exactly: its expanded ids and its images in order. It lets the trainer check what was sent."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=16)
    for image in hashes:
        digest.update(image.encode())
    return digest.digest()
