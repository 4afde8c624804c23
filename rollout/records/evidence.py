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
"""Bytes of a prompt's digest: one half is for its ids, the other for its images."""

ANSWER_DIGEST_BYTES = _HALF_DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Which weights sampled a range of a completion's tokens.

    Attributes:
        version: the version of the weights.
        start: the first token of the range.
        end: the token after the last one of the range.
    """

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class RoutedExperts:
    """Which experts a mixture of experts chose for the tokens of a path.

    A turn has the rows of the tokens that it added. Before them is the row of the last token that the previous turn
    sampled, because that turn never fed this token to the network. The last token of a path has no row.

    Attributes:
        first: the expanded token of the path to which the first row belongs.
        rows: `rows[i]` has the choices in each layer for the expanded token `first + i`.
    """

    first: int
    rows: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class SamplingMask:
    """Which tokens could have been sampled at each token of a completion.

    Attributes:
        ids: the token ids for all tokens of the completion, one after another.
        lengths: how many of these ids belong to each token of the completion.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


def prompt_digest(ids: ExpandedIds, image_hashes: Sequence[str]) -> bytes:
    """Return the digest of a prompt's expanded ids and of its images in order, so that the trainer can check them."""
    return ids_digest(ids) + images_digest(image_hashes)


def ids_digest(ids: ExpandedIds) -> bytes:
    """Return the first half of a prompt's digest."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=_HALF_DIGEST_BYTES).digest()


def images_digest(image_hashes: Sequence[str]) -> bytes:
    """Return the second half of a prompt's digest."""
    return hashlib.blake2b("".join(image_hashes).encode(), digest_size=_HALF_DIGEST_BYTES).digest()


def answer_digest(ids: LogicalIds, logprobs: Logprobs) -> bytes:
    """Return the digest of an answer as the engine gave it: the sampled ids, and the log-prob of each."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=ANSWER_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(logprobs, dtype="<f4").data)
    return digest.digest()
