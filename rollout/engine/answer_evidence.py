"""Reads the evidence of an answer about its tokens: log-probs, weight versions, routed experts, sampling masks.

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
    """Return the log-prob of each sampled token. Raises InvalidEvidence if they do not fit the tokens."""
    content = (logprobs_json or {}).get("content") or []
    if len(content) != len(tokens):
        raise InvalidEvidence(f"the answer has {len(tokens)} tokens, but {len(content)} log-probs.")
    values = []
    for position, (token, entry) in enumerate(zip(tokens, content, strict=True)):
        entry_token = entry["token_id"] if "token_id" in entry else _parse_older_token_name(entry)
        if entry_token != token:
            raise InvalidEvidence(
                f"the log-prob at position {position} is for token {entry_token}, but token {token} was sampled there."
            )
        value = entry.get("logprob")
        if not isinstance(value, float | int) or not VLLM_MISSING_LOGPROB < value <= LOGPROB_TOLERANCE:
            raise InvalidEvidence(
                f"the log-prob at position {position} is {value!r}; expected a number between "
                f"{VLLM_MISSING_LOGPROB:g} and 0."
            )
        values.append(value)
    return np.array(values, np.float32)


def _parse_older_token_name(entry: Mapping[str, Any]) -> Any:
    """Return the token id of an entry in the form of vLLM before 0.32, which writes `token_id:17`."""
    prefix, _, number = str(entry.get("token")).partition(":")
    return int(number) if prefix == "token_id" and number.isdigit() else entry.get("token")


def read_versions(token_count: int, spans_json: Any) -> tuple[VersionSpan, ...]:
    """Return the spans of the answer with the version that sampled each. Raises InvalidEvidence if there is a gap."""
    version_spans = tuple(
        VersionSpan(str(span["version"]), int(span["start"]), int(span["end"])) for span in spans_json or ()
    )
    expected_start = 0
    for span in version_spans:
        if span.start != expected_start or span.end < span.start:
            raise InvalidEvidence(
                f"weight_versions has a span from {span.start} to {span.end} (version {span.version!r}); expected a "
                f"span that begins at {expected_start} and ends there or later."
            )
        expected_start = span.end
    if version_spans and expected_start != token_count:
        raise InvalidEvidence(
            f"weight_versions ends at token {expected_start}, but the answer has {token_count} tokens."
        )
    return version_spans


def read_experts(encoded_rows: str | None, *, first_token: int, conversation_length: int) -> RoutedExperts | None:
    """Return the routed experts of the tokens from `first_token` on; None if the engine sent none.

    The last of the `conversation_length` tokens has no experts. An engine may also send the experts of the tokens
    before `first_token`; these are left out.

    Raises:
        InvalidEvidence: the rows are not an array of integers with one row for each of these tokens.
    """
    if encoded_rows is None:
        return None
    try:
        rows = np.load(io.BytesIO(base64.b64decode(encoded_rows, validate=True)), allow_pickle=False)
    except ValueError as error:
        raise InvalidEvidence(f"routed_experts is not a .npy array in base64: {error}.") from None
    if rows.ndim != 3 or not np.issubdtype(rows.dtype, np.integer):
        raise InvalidEvidence(
            f"routed_experts has the type {rows.dtype} and the shape {rows.shape}; expected integers, and the shape "
            "[token, layer, choice]."
        )
    if len(rows) == conversation_length - 1:
        rows = rows[first_token:]
    if len(rows) != conversation_length - 1 - first_token:
        raise InvalidEvidence(
            f"routed_experts has {len(rows)} rows; expected {conversation_length - 1 - first_token}, one for each "
            f"token from {first_token} on except the last."
        )
    return RoutedExperts(first_token, np.ascontiguousarray(rows))


def read_sampling_mask(tokens: Sequence[int], mask_json: Any) -> SamplingMask | None:
    """Return the tokens that could have been sampled at each position; None if the engine sent none.

    Raises:
        InvalidEvidence: the mask does not fit the sampled tokens.
    """
    if mask_json is None:
        return None
    if len(mask_json) != len(tokens):
        raise InvalidEvidence(
            f"the sampling mask has {len(mask_json)} positions, but the answer has {len(tokens)} tokens."
        )
    for position, (token, allowed) in enumerate(zip(tokens, mask_json, strict=True)):
        if token not in allowed:
            raise InvalidEvidence(f"the sampling mask at position {position} does not have the sampled token {token}.")
    lengths = np.fromiter((len(allowed) for allowed in mask_json), np.int32, len(mask_json))
    return SamplingMask(np.array([token for allowed in mask_json for token in allowed], np.int32), lengths)
