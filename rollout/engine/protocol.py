"""Encodes requests for vLLM's token-in, token-out endpoint, and decodes its answers.

The engine ignores unknown request keys, and answers several malformed requests with status 200 and garbage. So every
request is checked before it is sent, and an answer is accepted only if it proves that the engine saw our prompt.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from renderers_adapter.geometry import Geometry
from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs
from rollout.engine.answer_evidence import read_experts, read_logprobs, read_sampling_mask, read_versions
from rollout.engine.errors import EngineMismatch, InvalidEvidence, RequestRefusedLocally
from rollout.engine.features import reference_features
from rollout.engine.request import GenerateRequest
from rollout.engine.request_checks import check_request
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan, answer_digest, prompt_digest
from rollout.records.messages import FinishReason

_FINISH_REASONS = frozenset(FinishReason)
_BAN = -100.0
"""The smallest bias that vLLM accepts. It makes the probability of a token 0 in float32."""

_PROMPT_IDS_KEY = b'"prompt_token_ids":'


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked answer of an engine.

    Attributes:
        token_ids: the sampled tokens.
        logprobs: the log-prob of each sampled token.
        finish_reason: why the answer ended.
        stop_reason: the stop string or stop token that ended the answer; None if the engine reports none.
        versions: the spans of tokens with the version that sampled each; empty if the engine reports none.
        prompt_digest: the digest of the expanded prompt that the engine saw, and of its images.
        answer_digest: the digest of the sampled tokens and their log-probs.
        cached_tokens: the number of prompt tokens from the engine's prefix cache; None if the engine reports none.
        routed_experts: the experts to which each token was routed; None if the engine does not send them.
        sampling_mask: the tokens that could have been sampled at each position; None if the engine does not send them.
        banned_ids: the tokens that the engine was not allowed to sample.
    """

    token_ids: LogicalIds
    logprobs: Logprobs
    finish_reason: FinishReason
    stop_reason: str | int | None
    versions: tuple[VersionSpan, ...]
    prompt_digest: bytes
    answer_digest: bytes
    cached_tokens: int | None
    routed_experts: RoutedExperts | None
    sampling_mask: SamplingMask | None
    banned_ids: tuple[int, ...]


def encode_request(
    request: GenerateRequest,
    model: str,
    request_id: str,
    *,
    experts_start: int | None = None,
    geometry: Geometry | None = None,
) -> bytes:
    """Return the body of `POST /inference/v1/generate`.

    Args:
        request: the request.
        model: the name under which the engine serves the model.
        request_id: the id of this try.
        experts_start: the position of the first token whose routed experts the engine sends; None: do not ask for it.
        geometry: the geometry of the references that this engine resolves; None: send the URLs of the images.

    Raises:
        RequestRefusedLocally: the engine would answer the request with garbage, or crash.
    """
    check_request(request)
    stop_token_ids = dict.fromkeys((*request.stop_token_ids, *request.sampling.get("stop_token_ids", ())))
    sampling = {**request.sampling, "logprobs": 0, "stop_token_ids": list(stop_token_ids)}
    if request.banned_ids:
        bans = {str(token): _BAN for token in request.banned_ids}
        sampling["logit_bias"] = {**sampling.get("logit_bias", {}), **bans}
    if experts_start is not None:
        sampling["routed_experts_prompt_start"] = experts_start
    body: dict[str, Any] = {
        "model": model,
        "request_id": request_id,
        "token_ids": request.prompt,
        "sampling_params": sampling,
        "return_token_ids": True,
        "stream": False,
    }
    if request.required_version is not None:
        # The prefix cache may still contain entries of other weights for these tokens. The salt separates them.
        body["cache_salt"] = request.required_version
    if request.images and geometry is not None:
        body |= {"token_ids": request.expanded_prompt, "features": reference_features(request, geometry)}
    elif request.images:
        body["content_parts"] = [ref.content_part for ref in request.images]
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise RequestRefusedLocally(f"the sampling parameters cannot be written as JSON: {error}.") from None


def decode_response(body: bytes, request: GenerateRequest) -> Generation:
    """Read an answer, check it against the request, and return it.

    Raises:
        EngineMismatch: the answer is not JSON of the expected form, or the engine saw another prompt.
        InvalidEvidence: the log-probs or other evidence are missing, not finite, or for other tokens.
    """
    try:
        body_without_prompt, prompt_matches = _strip_echoed_prompt(body, request.expanded_prompt)
        answer = orjson.loads(body_without_prompt)
        (choice,) = answer["choices"]
        sampled_ids = choice["token_ids"]
        tokens = np.asarray(sampled_ids, np.int32)
        echoed_prompt = answer["prompt_token_ids"]
        seen_prompt = (
            request.expanded_prompt
            if prompt_matches and echoed_prompt is None
            else ExpandedIds(np.asarray(echoed_prompt, np.int32))
        )
        finish_reason = choice["finish_reason"]
        placeholders_by_modality = (answer.get("mm_placeholders") or {}).values()
        image_ranges = [
            (int(placeholder["offset"]), int(placeholder["length"]))
            for placeholders in placeholders_by_modality
            for placeholder in placeholders or ()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EngineMismatch(
            f"{request.request_id}: the engine's answer does not have the expected form ({error!r}). "
            "Is the engine vLLM 0.28 or newer, started with --enable-scale-out?"
        ) from None
    if finish_reason not in _FINISH_REASONS:
        raise EngineMismatch(f"{request.request_id}: the answer has the unknown finish_reason {finish_reason!r}.")
    if len(tokens) and tokens.min() < 0:
        raise EngineMismatch(
            f"{request.request_id}: the engine sampled the token {tokens.min()}, but a token id is not negative."
        )
    _require_same_prompt(request, seen_prompt, image_ranges)
    try:
        logprobs = read_logprobs(sampled_ids, choice.get("logprobs"))
        return Generation(
            token_ids=LogicalIds(tokens),
            logprobs=logprobs,
            finish_reason=FinishReason(finish_reason),
            stop_reason=choice.get("stop_reason"),
            versions=read_versions(len(tokens), choice.get("weight_versions")),
            prompt_digest=prompt_digest(seen_prompt, [ref.hash for ref in request.images]),
            answer_digest=answer_digest(LogicalIds(tokens), logprobs),
            cached_tokens=((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens"),
            routed_experts=read_experts(
                choice.get("routed_experts"),
                first_token=request.experts_start,
                conversation_length=len(seen_prompt) + len(tokens),
            ),
            sampling_mask=read_sampling_mask(sampled_ids, choice.get("sampling_mask")),
            banned_ids=request.banned_ids,
        )
    except InvalidEvidence as error:
        raise InvalidEvidence(f"{request.request_id}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidEvidence(
            f"{request.request_id}: the evidence does not have the expected form ({error!r})."
        ) from None


def _strip_echoed_prompt(body: bytes, sent_prompt: ExpandedIds) -> tuple[bytes, bool]:
    """Replace the prompt in an answer by `null` if its JSON text equals ours; return the body and whether it was equal.

    To parse the ids of a whole conversation takes longer than to parse the rest of an answer, but to compare their text
    takes almost no time. If the text is different, the answer is returned unchanged.
    """
    prompt_json = orjson.dumps(sent_prompt, option=orjson.OPT_SERIALIZE_NUMPY)
    start = body.find(_PROMPT_IDS_KEY) + len(_PROMPT_IDS_KEY)
    if not body.startswith(prompt_json, start):
        return body, False
    return b"".join((body[:start], b"null", body[start + len(prompt_json) :])), True


def _require_same_prompt(
    request: GenerateRequest, seen_prompt: ExpandedIds, seen_ranges: list[tuple[int, int]]
) -> None:
    sent_prompt = request.expanded_prompt
    if seen_prompt is not sent_prompt and not np.array_equal(sent_prompt, seen_prompt):
        common_length = min(len(sent_prompt), len(seen_prompt))
        different_positions = np.flatnonzero(sent_prompt[:common_length] != seen_prompt[:common_length])
        first_difference = int(different_positions[0]) if len(different_positions) else common_length
        raise EngineMismatch(
            f"{request.request_id}: the engine saw another prompt. It has {len(seen_prompt)} tokens and ours has "
            f"{len(sent_prompt)}; the first difference is at token {first_difference}. Do both sides use the same "
            "tokenizer and processor configuration?"
        )
    sent_ranges = [(placeholder.offset, placeholder.length) for placeholder in request.placeholders]
    if seen_ranges != sent_ranges and sorted(seen_ranges) != sorted(sent_ranges):
        raise EngineMismatch(
            f"{request.request_id}: the engine placed the images at {seen_ranges[:4]}, but we placed them at "
            f"{sent_ranges[:4]} (offset, length)."
        )
