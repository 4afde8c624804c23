"""What an engine's answer proves about a turn, in the form that worker and trainer share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs

VLLM_MISSING_LOGPROB = -9999.0
"""What vLLM writes where it has no log-prob, or one that is not a number."""

_HALF_DIGEST_BYTES = 8
PROMPT_DIGEST_BYTES = 2 * _HALF_DIGEST_BYTES
"""Of a prompt's digest: half for its ids, half for its images."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """`version` of the weights sampled the completion's tokens from `start` up to `end`."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class RoutedExperts:
    """What a mixture of experts chose: `rows[i]`, of layers by choices, for the expanded token `first + i` of a path.

    A turn brings the rows of the tokens that it added, and before them that of the token which the turn before it
    sampled last and never fed to the network. The last token of a path has none.
    """

    first: int
    rows: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class SamplingMask:
    """The tokens that could have been sampled: `lengths[i]` of the `ids` at the completion's token `i`."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


def prompt_digest(ids: ExpandedIds, image_hashes: Sequence[str]) -> bytes:
    """Names a prompt exactly, its expanded ids and then its images in order: the trainer can check what was sent."""
    return ids_digest(ids) + images_digest(image_hashes)


def ids_digest(ids: ExpandedIds) -> bytes:
    """The first half of a prompt's digest."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=_HALF_DIGEST_BYTES).digest()


def images_digest(image_hashes: Sequence[str]) -> bytes:
    """The second half of a prompt's digest."""
    return hashlib.blake2b("".join(image_hashes).encode(), digest_size=_HALF_DIGEST_BYTES).digest()


def answer_digest(ids: LogicalIds, logprobs: Logprobs) -> bytes:
    """Names an answer exactly as the engine gave it: the sampled ids, and the log-prob of each."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=_HALF_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(logprobs, dtype="<f4").data)
    return digest.digest()
