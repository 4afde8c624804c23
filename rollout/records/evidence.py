"""What an engine reports about an answer, and the digests that prove what it received and sampled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs

VLLM_MISSING_LOGPROB = -9999.0
"""The log-prob that vLLM writes where it has none, or where it is not a number."""

_HALF_DIGEST_BYTES = 8
PROMPT_DIGEST_BYTES = 2 * _HALF_DIGEST_BYTES
"""Bytes of a prompt's digest: one half is for its ids, the other for its images."""

ANSWER_DIGEST_BYTES = _HALF_DIGEST_BYTES
"""Bytes of an answer's digest."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """The weights that sampled a range of a completion's tokens.

    Attributes:
        version: the name of the version of the weights.
        start: the position of the first token of the range in the completion, from 0 on.
        end: the position after the last token of the range.
    """

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class RoutedExperts:
    """The experts of a mixture of experts that processed the tokens of a path.

    A turn has the rows of the tokens that it added. Before them is the row of the last token that the previous turn
    sampled, because that turn never fed this token to the network. The last token of a path has no row.

    Attributes:
        first: the position in the path's expanded ids of the token to which the first row belongs.
        rows: integers of the shape (token, layer, choice): `rows[i]` has the numbers of the experts that each layer
            chose for the expanded token `first + i`.
    """

    first: int
    rows: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class SamplingMask:
    """The tokens among which each token of a completion was sampled, after top-k, top-p and the like.

    Attributes:
        ids: the ids of these tokens: first those for the first token of the completion, then those for the next.
        lengths: for each token of the completion, how many of `ids` are its own.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


def prompt_digest(ids: ExpandedIds, image_hashes: Sequence[str]) -> bytes:
    """Return the digest of a prompt's expanded ids and of its images in order; the trainer checks both with it."""
    return ids_digest(ids) + images_digest(image_hashes)


def ids_digest(ids: ExpandedIds) -> bytes:
    """Return the first half of a prompt's digest, which is for its ids."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=_HALF_DIGEST_BYTES).digest()


def images_digest(image_hashes: Sequence[str]) -> bytes:
    """Return the second half of a prompt's digest, which is for its images."""
    return hashlib.blake2b("".join(image_hashes).encode(), digest_size=_HALF_DIGEST_BYTES).digest()


def answer_digest(ids: LogicalIds, logprobs: Logprobs) -> bytes:
    """Return the digest of an answer as the engine gave it: of the sampled ids and their log-probs."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=ANSWER_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(logprobs, dtype="<f4").data)
    return digest.digest()
