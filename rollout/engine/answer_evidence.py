"""What an answer says about its tokens: log-probs, weight versions, routed experts, sampling masks.

Evidence that does not cover exactly the sampled tokens is refused, because a trainer would learn from wrong values.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from renderers_adapter.tokens import Logprobs
from rollout.engine.errors import InvalidEvidence
from rollout.records.bounds import LOGPROB_TOLERANCE
from rollout.records.evidence import VLLM_MISSING_LOGPROB, RoutedExperts, SamplingMask, VersionSpan


def read_logprobs(tokens: Sequence[int], logprobs_json: Any) -> Logprobs:
    """Return the log-prob of each sampled token. Raises InvalidEvidence."""
    content = (logprobs_json or {}).get("content") or []
    if len(content) != len(tokens):
        raise InvalidEvidence(f"{len(tokens)} tokens came with {len(content)} log-probs.")
    values = []
    for position, (token, entry) in enumerate(zip(tokens, content, strict=True)):
        entry_token = entry["token_id"] if "token_id" in entry else _parse_older_token_name(entry)
        if entry_token != token:
            raise InvalidEvidence(f"log-prob {position} is for token {entry_token}, but token {token} was sampled.")
        value = entry.get("logprob")
        if not isinstance(value, float | int) or not VLLM_MISSING_LOGPROB < value <= LOGPROB_TOLERANCE:
            raise InvalidEvidence(f"the log-prob of token {position} is {value!r}.")
        values.append(value)
    return np.array(values, np.float32)


def _parse_older_token_name(entry: Mapping[str, Any]) -> Any:
    """Return the token of an entry by vLLM before 0.32, which writes it as `token_id:17`."""
    prefix, _, number = str(entry.get("token")).partition(":")
    return int(number) if prefix == "token_id" and number.isdigit() else entry.get("token")


def read_versions(token_count: int, spans_json: Any) -> tuple[VersionSpan, ...]:
    """Return which weights sampled which tokens, without a gap. Raises InvalidEvidence."""
    version_spans = tuple(
        VersionSpan(str(span["version"]), int(span["start"]), int(span["end"])) for span in spans_json or ()
    )
    expected_start = 0
    for span in version_spans:
        if span.start != expected_start or span.end < span.start:
            raise InvalidEvidence(f"weight_versions {version_spans} do not cover the completion without a gap.")
        expected_start = span.end
    if version_spans and expected_start != token_count:
        raise InvalidEvidence(f"weight_versions end at {expected_start}, the completion at {token_count}.")
    return version_spans


def read_experts(encoded_rows: str | None, *, first_token: int, conversation_length: int) -> RoutedExperts | None:
    """Return the experts of the tokens from `first_token` on; the last of `conversation_length` tokens has none.

    An engine may also send the experts of all tokens.

    Raises:
        InvalidEvidence: the rows are not an integer array of exactly these tokens.
    """
    if encoded_rows is None:
        return None
    try:
        rows = np.load(io.BytesIO(base64.b64decode(encoded_rows, validate=True)), allow_pickle=False)
    except ValueError as error:
        raise InvalidEvidence(f"routed_experts are not a base64 .npy array: {error}.") from None
    if rows.ndim != 3 or not np.issubdtype(rows.dtype, np.integer):
        raise InvalidEvidence(
            f"routed_experts are {rows.dtype} of shape {rows.shape}; expected [token, layer, choice]."
        )
    if len(rows) == conversation_length - 1:
        rows = rows[first_token:]
    if len(rows) != conversation_length - 1 - first_token:
        raise InvalidEvidence(
            f"routed_experts have {len(rows)} rows for the tokens {first_token} to {conversation_length - 1}."
        )
    return RoutedExperts(first_token, np.ascontiguousarray(rows))


def read_sampling_mask(tokens: Sequence[int], mask_json: Any) -> SamplingMask | None:
    """Return which tokens could have been sampled at each position. Raises InvalidEvidence."""
    if mask_json is None:
        return None
    if len(mask_json) != len(tokens):
        raise InvalidEvidence(f"the sampling mask covers {len(mask_json)} of {len(tokens)} tokens.")
    for position, (token, allowed) in enumerate(zip(tokens, mask_json, strict=True)):
        if token not in allowed:
            raise InvalidEvidence(f"the sampling mask of token {position} does not contain the token {token} itself.")
    lengths = np.fromiter((len(allowed) for allowed in mask_json), np.int32, len(mask_json))
    return SamplingMask(np.array([token for allowed in mask_json for token in allowed], np.int32), lengths)
