"""vLLM's token-in, token-out endpoint: what is sent, and what is believed of the answer.

Unknown request keys are ignored by the engine, and several malformed requests are answered with 200 and garbage. So
nothing leaves here that was not checked, and no answer passes that does not prove it saw our prompt.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Logprobs, Placeholder
from rollout.engine.errors import EngineMismatch, InvalidEvidence, RequestRefusedLocally
from rollout.evidence import VersionSpan, prompt_digest

_NO_LOGPROB = -9999.0
_HASH = re.compile(r"[0-9a-f]{16,128}")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a request: where the engine reads it, and the hash it is known by."""

    url: str
    hash: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One turn. `images` are all images of the path in prompt order; `expanded` is the prompt the engine must see."""

    request_id: str
    prompt: LogicalIds
    images: tuple[ImageRef, ...]
    expanded: ExpandedIds
    placeholders: tuple[Placeholder, ...]
    pad_id: int | None
    sampling: Mapping[str, Any]
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked answer."""

    token_ids: LogicalIds
    logprobs: Logprobs
    finish_reason: str
    stop_reason: str | int | None
    versions: tuple[VersionSpan, ...]
    prompt_digest: bytes
    cached_tokens: int | None
    routed_experts: str | None
    sampling_mask: Any


def encode_request(request: GenerateRequest, model: str) -> bytes:
    """The body of `POST /inference/v1/generate`.

    Raises:
        RequestRefusedLocally: the engine would answer this with garbage, or die of it.
    """
    _refuse_unsound(request)
    body: dict[str, Any] = {
        "model": model,
        "request_id": request.request_id,
        "token_ids": request.prompt,
        "sampling_params": {**request.sampling, "logprobs": 0, "stop_token_ids": request.stop_token_ids},
        "return_token_ids": True,
        "stream": False,
    }
    if request.images:
        body["content_parts"] = [{"type": "image_url", "url": ref.url, "uuid": ref.hash} for ref in request.images]
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_response(body: bytes, request: GenerateRequest) -> Generation:
    """Read an answer and check it against the request.

    Raises:
        EngineMismatch: it is not JSON of the expected shape, or the engine saw another prompt.
        InvalidEvidence: log-probs are missing, not finite, or of other tokens.
    """
    try:
        answer = orjson.loads(body)
        (choice,) = answer["choices"]
        tokens = np.asarray(choice["token_ids"], np.int32)
        seen = np.asarray(answer["prompt_token_ids"], np.int32)
        finish = choice["finish_reason"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise EngineMismatch(
            f"{request.request_id}: the engine's answer has not the expected shape ({error!r}). "
            "Is it vLLM 0.28 or newer, started with --enable-scale-out?"
        ) from None
    if finish not in ("stop", "length", "abort"):
        raise EngineMismatch(f"{request.request_id}: unknown finish_reason {finish!r}.")
    _require_same_prompt(request, seen, answer.get("mm_placeholders"))
    return Generation(
        token_ids=LogicalIds(tokens),
        logprobs=_logprobs(request.request_id, tokens, choice.get("logprobs")),
        finish_reason=finish,
        stop_reason=choice.get("stop_reason"),
        versions=_versions(request.request_id, len(tokens), choice.get("weight_versions")),
        prompt_digest=prompt_digest(ExpandedIds(seen), [ref.hash for ref in request.images]),
        cached_tokens=((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens"),
        routed_experts=choice.get("routed_experts"),
        sampling_mask=choice.get("sampling_mask"),
    )


def _refuse_unsound(request: GenerateRequest) -> None:
    who = request.request_id
    if len(request.prompt) == 0 or int(request.prompt.min()) < 0:
        raise RequestRefusedLocally(f"{who}: the prompt is empty or holds a negative token id.")
    pads = 0 if request.pad_id is None else int(np.count_nonzero(request.prompt == request.pad_id))
    if pads != len(request.images):
        raise RequestRefusedLocally(
            f"{who}: the prompt holds {pads} image pad tokens for {len(request.images)} images."
        )
    if "temperature" not in request.sampling:
        raise RequestRefusedLocally(f"{who}: no temperature; the engine would choose one of its own.")
    for index, ref in enumerate(request.images):
        if not ref.url.startswith(("data:image/", "file:///")):
            raise RequestRefusedLocally(f"{who}: image {index} is at {ref.url[:40]!r}; expected data: or file://.")
        if not _HASH.fullmatch(ref.hash):
            raise RequestRefusedLocally(f"{who}: image {index} has the hash {ref.hash!r}, which is not lower-case hex.")


def _require_same_prompt(request: GenerateRequest, seen: npt.NDArray[np.int32], placeholders: Any) -> None:
    ours = request.expanded
    if not np.array_equal(ours, seen):
        shared = min(len(ours), len(seen))
        differing = np.flatnonzero(ours[:shared] != seen[:shared])
        at = int(differing[0]) if len(differing) else shared
        raise EngineMismatch(
            f"{request.request_id}: the engine saw another prompt: {len(seen)} tokens for our {len(ours)}, the first "
            f"difference at {at}. Do both sides use the same tokenizer and processor configuration?"
        )
    expected = [(mark.offset, mark.length) for mark in request.placeholders]
    ranges = [(r.get("offset"), r.get("length")) for rs in (placeholders or {}).values() for r in rs]
    if sorted(ranges, key=str) != sorted(expected, key=str):
        raise EngineMismatch(
            f"{request.request_id}: the engine placed its images at {ranges[:4]}, we placed them at {expected[:4]}."
        )


def _logprobs(who: str, tokens: npt.NDArray[np.int32], evidence: Any) -> Logprobs:
    content = (evidence or {}).get("content") or []
    if len(content) != len(tokens):
        raise InvalidEvidence(f"{who}: {len(tokens)} tokens came with {len(content)} log-probs.")
    values = np.empty(len(tokens), np.float32)
    for position, (token, entry) in enumerate(zip(tokens.tolist(), content, strict=True)):
        named, value = _evidence_token(entry), entry.get("logprob")
        if named != token:
            raise InvalidEvidence(f"{who}: log-prob {position} is of token {named}, the sampled token is {token}.")
        if not isinstance(value, int | float) or not math.isfinite(value) or value == _NO_LOGPROB:
            raise InvalidEvidence(f"{who}: the log-prob of token {position} is {value!r}.")
        values[position] = value
    return values


def _evidence_token(entry: Mapping[str, Any]) -> Any:
    named = entry.get("token_id")
    if named is None:
        prefix, _, number = str(entry.get("token")).partition(":")
        return int(number) if prefix == "token_id" and number.isdigit() else entry.get("token")
    return named


def _versions(who: str, length: int, spans: Any) -> tuple[VersionSpan, ...]:
    found = tuple(VersionSpan(str(span["version"]), int(span["start"]), int(span["end"])) for span in spans or ())
    at = 0
    for span in found:
        if span.start != at or span.end < span.start:
            raise InvalidEvidence(f"{who}: weight_versions {found} do not cover the completion without a gap.")
        at = span.end
    if found and at != length:
        raise InvalidEvidence(f"{who}: weight_versions end at {at}, the completion at {length}.")
    return found
