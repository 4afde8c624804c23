"""The embedded engine: vLLM's token-in, token-out endpoint over HTTP, with no neural network inside.

It speaks the protocol more strictly than vLLM does: what vLLM ignores, answers with garbage or dies of is answered with
400 here, and a message that names the item. Whoever passes here is understood by vLLM.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rollout.serving.engine import Completion, EmbeddedSettings, ScriptedEngine
from rollout.serving.protocol import GenerateRequest, RequestRefused, parse_request
from rollout.serving.sampling import SampledToken

_ID_PREFIX = "generate-tokens-"
_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


def create_app(settings: EmbeddedSettings) -> Starlette:
    """The ASGI application; what is wrong with the settings is raised here, before anything listens."""
    endpoints = _Endpoints(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        endpoints.close()

    return Starlette(
        routes=[
            Route("/inference/v1/generate", endpoints.generate, methods=["POST"]),
            Route("/inference/v1/abort_requests", endpoints.abort_requests, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/health", endpoints.health),
            Route("/version", endpoints.version),
        ],
        exception_handlers={RequestRefused: _refused, HTTPException: _http_error, Exception: _crashed},
        lifespan=lifespan,
    )


class _Endpoints:
    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        self._engine = ScriptedEngine(settings)
        self._running: dict[str, asyncio.Event] = {}
        # Decoding and drawing take milliseconds to seconds, during which others must be accepted and aborted.
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="embedded-engine")
        self._started = int(time.time())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def generate(self, http: Request) -> Response:
        request = parse_request(await http.body())
        request_id = _ID_PREFIX + request.request_id
        with self._abortable(request_id) as aborted:
            loop = asyncio.get_running_loop()
            completion = await loop.run_in_executor(self._threads, self._engine.complete, request)
            completion = await self._paced(completion, aborted)
        return _json(self._answer(request_id, request, completion))

    async def abort_requests(self, http: Request) -> Response:
        try:
            request_ids = orjson.loads(await http.body())["request_ids"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise RequestRefused('Expected {"request_ids": […]}.', param="request_ids") from error
        if not isinstance(request_ids, list) or not all(isinstance(one, str) for one in request_ids):
            raise RequestRefused("request_ids is not a list of strings.", param="request_ids")
        for request_id in request_ids:
            if request_id in self._running:
                self._running[request_id].set()
        return Response()

    async def models(self, http: Request) -> Response:
        model = {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "rollout",
            "root": str(self._settings.model_dir),
            "parent": None,
            "max_model_len": self._settings.max_model_len,
        }
        return _json({"object": "list", "data": [model]})

    async def health(self, http: Request) -> Response:
        return Response()

    async def version(self, http: Request) -> Response:
        return _json({"version": f"rollout-{version('rollout')}"})

    @contextmanager
    def _abortable(self, request_id: str) -> Iterator[asyncio.Event]:
        if request_id in self._running:
            raise RequestRefused(f"request_id: {request_id} is already running.", param="request_id")
        self._running[request_id] = asyncio.Event()
        try:
            yield self._running[request_id]
        finally:
            del self._running[request_id]

    async def _paced(self, completion: Completion, aborted: asyncio.Event) -> Completion:
        """Take the time that the settings ask for; an abort ends it early, with the tokens that were due by then."""
        first, further = self._settings.latency_ms / 1000, self._settings.token_latency_ms / 1000
        began = time.monotonic()
        try:
            async with asyncio.timeout(first + further * (len(completion.tokens) - 1)):
                await aborted.wait()
        except TimeoutError:
            return completion
        return completion.cut(tokens_due(time.monotonic() - began, first, further))

    def _answer(self, request_id: str, request: GenerateRequest, completion: Completion) -> dict[str, Any]:
        tokens = completion.tokens
        prompt_length = len(completion.prompt.token_ids)
        answer: dict[str, Any] = {
            "request_id": request_id,
            "output_mode": "tokens",
            "model": self._settings.model_name,
            "created": int(time.time()),
            "choices": [
                {
                    "index": 0,
                    "token_ids": [token.token_id for token in tokens],
                    "logprobs": {"content": _evidence(tokens, request.sampling_params.logprobs)},
                    "finish_reason": completion.finish_reason,
                    "stop_reason": completion.stop_reason,
                    "weight_versions": [{"version": self._settings.weight_version, "start": 0, "end": len(tokens)}],
                    "routed_experts": None,
                    "sampling_mask": None,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_length,
                "completion_tokens": len(tokens),
                "total_tokens": prompt_length + len(tokens),
            },
            "prompt_token_ids": None,
            "mm_placeholders": None,
        }
        if request.return_token_ids:
            answer["prompt_token_ids"] = completion.prompt.token_ids
            if completion.prompt.placeholders:
                ranges = [{"offset": offset, "length": length} for offset, length in completion.prompt.placeholders]
                answer["mm_placeholders"] = {"image": ranges}
        return answer


def tokens_due(elapsed: float, first: float, further: float) -> int:
    """How many tokens exist after `elapsed` seconds, where the first takes `first` and each other one `further`."""
    if elapsed < first:
        return 0
    return 1 + int((elapsed - first) / further) if further else 1


def _evidence(tokens: Sequence[SampledToken], top: int) -> list[dict[str, Any]]:
    """Log-probs in vLLM's shape: the sampled token comes first, then what else was possible, likeliest first."""
    content = []
    for token in tokens:
        own = {"token_id": token.token_id, "logprob": token.logprob, "rank": token.rank}
        others = [
            {"token_id": token_id, "logprob": logprob, "rank": rank}
            for rank, (token_id, logprob) in enumerate(token.possible[: top + 1], start=1)
            if token_id != token.token_id
        ]
        content.append({**own, "top_logprobs": [own, *others][: max(top, 1)]})
    return content


async def _refused(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return _error(error.message, error.status, error.param)


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(f"{http.method} {http.url.path}: {error.detail}", error.status_code, None)


async def _crashed(http: Request, error: Exception) -> Response:
    return _error(f"{type(error).__name__}: {error}", 500, None)


def _error(message: str, status: int, param: str | None) -> Response:
    error = {"message": message, "type": _ERROR_TYPES.get(status, "HTTPError"), "param": param, "code": status}
    return _json({"error": error}, status)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
