"""What an answer proves about its tokens: log-probs, weight versions, routed experts, sampling masks.

Evidence that is not of exactly the sampled tokens is refused: a trainer that believes it learns the wrong thing.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from renderers_adapter.tokens import Logprobs
from rollout.engine.errors import InvalidEvidence
from rollout.records.evidence import NO_LOGPROB, RoutedExperts, SamplingMask, VersionSpan


def read_logprobs(tokens: Sequence[int], evidence: Any) -> Logprobs:
    """One log-prob per sampled token. Raises InvalidEvidence."""
    content = (evidence or {}).get("content") or []
    if len(content) != len(tokens):
        raise InvalidEvidence(f"{len(tokens)} tokens came with {len(content)} log-probs.")
    values = []
    for position, (token, entry) in enumerate(zip(tokens, content, strict=True)):
        named = entry["token_id"] if "token_id" in entry else _older_token(entry)
        if named != token:
            raise InvalidEvidence(f"log-prob {position} is of token {named}, the sampled token is {token}.")
        value = entry.get("logprob")
        if not isinstance(value, float | int) or not math.isfinite(value) or value == NO_LOGPROB:
            raise InvalidEvidence(f"the log-prob of token {position} is {value!r}.")
        values.append(value)
    return np.array(values, np.float32)


def _older_token(entry: Mapping[str, Any]) -> Any:
    """Servers before 0.32 name a token `token_id:17`."""
    prefix, _, number = str(entry.get("token")).partition(":")
    return int(number) if prefix == "token_id" and number.isdigit() else entry.get("token")


def read_versions(length: int, spans: Any) -> tuple[VersionSpan, ...]:
    """Which weights sampled which tokens, without a gap. Raises InvalidEvidence."""
    found = tuple(VersionSpan(str(span["version"]), int(span["start"]), int(span["end"])) for span in spans or ())
    at = 0
    for span in found:
        if span.start != at or span.end < span.start:
            raise InvalidEvidence(f"weight_versions {found} do not cover the completion without a gap.")
        at = span.end
    if found and at != length:
        raise InvalidEvidence(f"weight_versions end at {at}, the completion at {length}.")
    return found


def read_experts(encoded: str | None, *, first: int, length: int) -> RoutedExperts | None:
    """The experts of the tokens from `first` on, in a conversation of `length` tokens, the last of which went nowhere.

    An engine that was not asked to begin at `first`, or cannot, sends all of them. Raises InvalidEvidence.
    """
    if encoded is None:
        return None
    try:
        rows = np.load(io.BytesIO(base64.b64decode(encoded, validate=True)), allow_pickle=False)
    except ValueError as error:
        raise InvalidEvidence(f"routed_experts are not a base64 .npy array: {error}.") from None
    if rows.ndim != 3 or not np.issubdtype(rows.dtype, np.integer):
        raise InvalidEvidence(
            f"routed_experts are {rows.dtype} of shape {rows.shape}; expected [token, layer, choice]."
        )
    if len(rows) == length - 1:
        rows = rows[first:]
    if len(rows) != length - 1 - first:
        raise InvalidEvidence(f"routed_experts have {len(rows)} rows for the tokens {first} to {length - 1}.")
    return RoutedExperts(first, np.ascontiguousarray(rows))


def read_mask(tokens: Sequence[int], mask: Any) -> SamplingMask | None:
    """Which tokens could have been sampled in the place of each of these. Raises InvalidEvidence."""
    if mask is None:
        return None
    if len(mask) != len(tokens):
        raise InvalidEvidence(f"the sampling mask covers {len(mask)} of {len(tokens)} tokens.")
    for position, (token, allowed) in enumerate(zip(tokens, mask, strict=True)):
        if token not in allowed:
            raise InvalidEvidence(f"the sampling mask of token {position} is without the token {token} itself.")
    lengths = np.fromiter((len(allowed) for allowed in mask), np.int32, len(mask))
    return SamplingMask(np.array([token for allowed in mask for token in allowed], np.int32), lengths)
