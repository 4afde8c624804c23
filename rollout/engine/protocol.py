"""vLLM's token-in, token-out endpoint: what is sent, and what is believed of the answer.

Unknown request keys are ignored by the engine, and several malformed requests are answered with 200 and garbage. So
nothing leaves here that was not checked, and no answer passes that does not prove it saw our prompt.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from renderers_adapter.geometry import Geometry
from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs
from rollout.engine.answer_evidence import read_experts, read_logprobs, read_mask, read_versions
from rollout.engine.errors import EngineMismatch, InvalidEvidence, RequestRefusedLocally
from rollout.engine.features import raw_features
from rollout.engine.request import GenerateRequest
from rollout.engine.request_checks import refuse_unsound
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan, answer_digest, prompt_digest

_PROMPT_KEY = b'"prompt_token_ids":'


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked answer."""

    token_ids: LogicalIds
    logprobs: Logprobs
    finish_reason: str
    stop_reason: str | int | None
    versions: tuple[VersionSpan, ...]
    prompt_digest: bytes
    answer_digest: bytes
    cached_tokens: int | None
    routed_experts: RoutedExperts | None
    sampling_mask: SamplingMask | None


def encode_request(
    request: GenerateRequest,
    model: str,
    request_id: str,
    *,
    experts_from: int | None = None,
    geometry: Geometry | None = None,
) -> bytes:
    """The body of `POST /inference/v1/generate`.

    Args:
        experts_from: the first token whose routed experts are wanted.
        geometry: that of the references which this engine resolves; none: it reads the images by their URLs.

    Raises:
        RequestRefusedLocally: the engine would answer this with garbage, or die of it.
    """
    refuse_unsound(request)
    stops = dict.fromkeys((*request.stop_token_ids, *request.sampling.get("stop_token_ids", ())))
    sampling = {**request.sampling, "logprobs": 0, "stop_token_ids": list(stops)}
    if experts_from is not None:
        sampling["routed_experts_prompt_start"] = experts_from
    body: dict[str, Any] = {
        "model": model,
        "request_id": request_id,
        "token_ids": request.prompt,
        "sampling_params": sampling,
        "return_token_ids": True,
        "stream": False,
    }
    if request.required is not None:
        # What the engine still has of these tokens from other weights is not theirs.
        body["cache_salt"] = request.required
    if request.images and geometry is not None:
        body |= {"token_ids": request.expanded, "features": raw_features(request, geometry)}
    elif request.images:
        body["content_parts"] = [ref.part for ref in request.images]
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise RequestRefusedLocally(f"{request_id}: the sampling cannot be written as JSON: {error}.") from None


def decode_response(body: bytes, request: GenerateRequest) -> Generation:
    """Read an answer and check it against the request.

    Raises:
        EngineMismatch: it is not JSON of the expected shape, or the engine saw another prompt.
        InvalidEvidence: log-probs are missing, not finite, or of other tokens.
    """
    try:
        rest, saw_ours = _without_our_prompt(body, request.expanded)
        answer = orjson.loads(rest)
        (choice,) = answer["choices"]
        sampled = choice["token_ids"]
        tokens = np.asarray(sampled, np.int32)
        told = answer["prompt_token_ids"]
        seen = request.expanded if saw_ours and told is None else ExpandedIds(np.asarray(told, np.int32))
        finish = choice["finish_reason"]
        marks = (answer.get("mm_placeholders") or {}).values()
        ranges = [(int(mark["offset"]), int(mark["length"])) for of_modality in marks for mark in of_modality or ()]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EngineMismatch(
            f"{request.request_id}: the engine's answer has not the expected shape ({error!r}). "
            "Is it vLLM 0.28 or newer, started with --enable-scale-out?"
        ) from None
    if finish not in ("stop", "length", "abort"):
        raise EngineMismatch(f"{request.request_id}: unknown finish_reason {finish!r}.")
    if len(tokens) and tokens.min() < 0:
        raise EngineMismatch(f"{request.request_id}: the engine sampled the token {tokens.min()}.")
    _require_same_prompt(request, seen, ranges)
    try:
        logprobs = read_logprobs(sampled, choice.get("logprobs"))
        return Generation(
            token_ids=LogicalIds(tokens),
            logprobs=logprobs,
            finish_reason=finish,
            stop_reason=choice.get("stop_reason"),
            versions=read_versions(len(tokens), choice.get("weight_versions")),
            prompt_digest=prompt_digest(seen, [ref.hash for ref in request.images]),
            answer_digest=answer_digest(LogicalIds(tokens), logprobs),
            cached_tokens=((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens"),
            routed_experts=read_experts(
                choice.get("routed_experts"), first=request.experts_from, length=len(seen) + len(tokens)
            ),
            sampling_mask=read_mask(sampled, choice.get("sampling_mask")),
        )
    except InvalidEvidence as error:
        raise InvalidEvidence(f"{request.request_id}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidEvidence(f"{request.request_id}: the evidence has not the expected shape ({error!r}).") from None


def _without_our_prompt(body: bytes, ours: ExpandedIds) -> tuple[bytes, bool]:
    """An answer whose prompt is `null` where it was ours, letter for letter, and whether it was.

    Reading the ids of a whole conversation costs more than all the rest of an answer, and comparing their text next to
    nothing. An answer that writes them otherwise is read as it is.
    """
    text = orjson.dumps(ours, option=orjson.OPT_SERIALIZE_NUMPY)
    start = body.find(_PROMPT_KEY) + len(_PROMPT_KEY)
    if not body.startswith(text, start):
        return body, False
    return b"".join((body[:start], b"null", body[start + len(text) :])), True


def _require_same_prompt(request: GenerateRequest, seen: ExpandedIds, ranges: list[tuple[int, int]]) -> None:
    ours = request.expanded
    if seen is not ours and not np.array_equal(ours, seen):
        shared = min(len(ours), len(seen))
        differing = np.flatnonzero(ours[:shared] != seen[:shared])
        at = int(differing[0]) if len(differing) else shared
        raise EngineMismatch(
            f"{request.request_id}: the engine saw another prompt: {len(seen)} tokens for our {len(ours)}, the first "
            f"difference at {at}. Do both sides use the same tokenizer and processor configuration?"
        )
    expected = [(mark.offset, mark.length) for mark in request.placeholders]
    if ranges != expected and sorted(ranges) != sorted(expected):
        raise EngineMismatch(
            f"{request.request_id}: the engine placed its images at {ranges[:4]}, we placed them at {expected[:4]}."
        )
