"""The data that an engine reports about an answer, and the digests that check prompts and answers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs

VLLM_MISSING_LOGPROB = -9999.0
"""The log-prob that vLLM writes for a token if it has no log-prob, or if the log-prob is NaN."""

_HALF_DIGEST_BYTES = 8
PROMPT_DIGEST_BYTES = 2 * _HALF_DIGEST_BYTES
"""The size of a prompt's digest in bytes. The first half is for the prompt's ids, the second for its images."""

ANSWER_DIGEST_BYTES = _HALF_DIGEST_BYTES
"""The size of an answer's digest in bytes."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """A range of a completion's tokens, and the version of the weights that sampled it.

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
    """The experts of a mixture-of-experts model that processed the tokens of a turn.

    There is one row for each token that the turn added, except the last one, which was not fed to the network. In a
    later turn, the first row is for the last token of the turn before, for the same reason.

    Attributes:
        first: the position of the first row's token in the expanded ids of the prompt and the answer.
        rows: integers of the shape (token, layer, choice). `rows[i]` contains the numbers of the experts that each
            layer chose for the token at the position `first + i`.
    """

    first: int
    rows: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class SamplingMask:
    """The tokens that could be sampled at each position of a completion, after top-k, top-p and similar filters.

    Attributes:
        ids: the ids of these tokens, in one array: all ids for position 0, then all ids for position 1, and so on.
        lengths: the number of ids in `ids` for each position.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


def prompt_digest(ids: ExpandedIds, image_hashes: Sequence[str]) -> bytes:
    """Return the digest of a prompt's expanded ids and image hashes, with which the trainer checks both."""
    return ids_digest(ids) + images_digest(image_hashes)


def ids_digest(ids: ExpandedIds) -> bytes:
    """Return the first half of a prompt's digest: the digest of the expanded ids."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=_HALF_DIGEST_BYTES).digest()


def images_digest(image_hashes: Sequence[str]) -> bytes:
    """Return the second half of a prompt's digest: the digest of the image hashes."""
    return hashlib.blake2b("".join(image_hashes).encode(), digest_size=_HALF_DIGEST_BYTES).digest()


def answer_digest(ids: LogicalIds, logprobs: Logprobs) -> bytes:
    """Return the digest of the sampled ids and their log-probs, as the engine returned them."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=ANSWER_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(logprobs, dtype="<f4").data)
    return digest.digest()
