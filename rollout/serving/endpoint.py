"""vLLM's token-in, token-out endpoint over HTTP, for the engines that we ship.

It is stricter than vLLM. vLLM ignores parts of some requests, answers others with garbage, or crashes. This endpoint
answers such a request with status 400 and an error that names the wrong item. vLLM accepts every request that this
endpoint accepts.
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
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rollout.serving.control import ControlRoutes
from rollout.serving.engine import Answer, Engine, Job, SampledToken
from rollout.serving.gate import PauseGate
from rollout.serving.protocol import GenerateBody, RequestRefused, parse_body
from rollout.serving.request_limits import LimitBody
from rollout.serving.responses import EXCEPTION_HANDLERS, json_response
from rollout.serving.vllm_key.rollout_vllm_key import RequireKey

_ID_PREFIX = "generate-tokens-"


def create_app(engine: Engine, *, weight_version: str, api_key: str | None = None) -> Starlette:
    """Return the ASGI application of an engine.

    Args:
        engine: the engine that answers.
        weight_version: the version of the engine's first weights.
        api_key: the key that every request except `/health` must have; None means no key.
    """
    gate = PauseGate(weight_version)
    endpoints = _Endpoints(engine, gate)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        endpoints.close()

    middleware = [Middleware(LimitBody)]
    if api_key is not None:
        middleware.insert(0, Middleware(RequireKey, key=api_key))
    return Starlette(
        middleware=middleware,
        routes=[
            Route("/inference/v1/generate", endpoints.generate, methods=["POST"]),
            Route("/inference/v1/abort_requests", endpoints.abort_requests, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/health", endpoints.health),
            Route("/version", endpoints.version),
            *ControlRoutes(engine, gate).routes(),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )


class _Endpoints:
    def __init__(self, engine: Engine, gate: PauseGate) -> None:
        self._engine = engine
        self._gate = gate
        self._abort_events: dict[str, asyncio.Event] = {}
        # Decoding images takes up to seconds. In this time, the event loop must accept and abort other requests.
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="engine")
        self._started = int(time.time())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.close()

    async def generate(self, http: Request) -> Response:
        request = parse_body(GenerateBody, await http.body())
        request_id = _ID_PREFIX + request.request_id
        if request.model not in (None, self._engine.model_card.name):
            raise RequestRefused(
                f"The model `{request.model}` does not exist here; ask for `{self._engine.model_card.name}`.",
                param="model",
                status=404,
            )
        with self._register_request(request_id) as aborted:
            job = await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.prepare, request)
            answer = await self._generate_answer(job, aborted)
        return json_response(self._reply_body(request_id, request, job, answer))

    async def abort_requests(self, http: Request) -> Response:
        try:
            request_ids = orjson.loads(await http.body())["request_ids"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise RequestRefused('The body must be {"request_ids": […]}.', param="request_ids") from error
        if not isinstance(request_ids, list) or not all(isinstance(one, str) for one in request_ids):
            raise RequestRefused("request_ids must be a list of strings.", param="request_ids")
        for request_id in request_ids:
            if request_id in self._abort_events:
                self._abort_events[request_id].set()
        return Response()

    async def models(self, http: Request) -> Response:
        card = self._engine.model_card
        model = {
            "id": card.name,
            "object": "model",
            "created": self._started,
            "owned_by": "rollout",
            "root": str(card.directory),
            "parent": None,
            "max_model_len": card.max_model_len,
        }
        return json_response({"object": "list", "data": [model]})

    async def health(self, http: Request) -> Response:
        return Response()

    async def version(self, http: Request) -> Response:
        return json_response({"version": f"rollout-{version('rollout-rl')}"})

    @contextmanager
    def _register_request(self, request_id: str) -> Iterator[asyncio.Event]:
        if request_id in self._abort_events:
            raise RequestRefused(f"request_id: {request_id} is already running; use another id.", param="request_id")
        self._abort_events[request_id] = asyncio.Event()
        try:
            yield self._abort_events[request_id]
        finally:
            del self._abort_events[request_id]

    async def _generate_answer(self, job: Job, aborted: asyncio.Event) -> Answer:
        """Return the answer that the engine generates. An abort ends it early, with the tokens so far."""
        answer = Answer(job.stop_conditions)

        async def write() -> None:
            async with self._gate.admit(aborted):
                await job.generate(answer, self._gate)

        write_task, abort_task = asyncio.create_task(write()), asyncio.create_task(aborted.wait())
        try:
            await asyncio.wait((write_task, abort_task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (write_task, abort_task):
                task.cancel()
        await asyncio.wait((write_task,))
        if not write_task.cancelled():
            write_task.result()
        if not answer.finished:
            answer.finish_reason = "abort"
        return answer

    def _reply_body(self, request_id: str, request: GenerateBody, job: Job, answer: Answer) -> dict[str, Any]:
        tokens = answer.tokens
        # An answer without tokens has no version of its own; it gets the current one.
        spans = list(answer.version_spans()) or [(self._gate.version, 0, 0)]
        prompt_length = len(job.prompt.token_ids)
        body: dict[str, Any] = {
            "request_id": request_id,
            "output_mode": "tokens",
            "model": self._engine.model_card.name,
            "created": int(time.time()),
            "choices": [
                {
                    "index": 0,
                    "token_ids": [token.token_id for token in tokens],
                    "logprobs": {"content": _logprobs_content(tokens, request.sampling_params.logprobs)},
                    "finish_reason": answer.finish_reason,
                    "stop_reason": answer.stop_reason,
                    "weight_versions": [{"version": name, "start": start, "end": end} for name, start, end in spans],
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
            body["prompt_token_ids"] = job.prompt.token_ids
            if job.prompt.placeholders:
                ranges = [{"offset": offset, "length": length} for offset, length in job.prompt.placeholders]
                body["mm_placeholders"] = {"image": ranges}
        return body


def _logprobs_content(tokens: Sequence[SampledToken], top_count: int) -> list[dict[str, Any]]:
    """Return the log-probs in vLLM's form: first the sampled token, then the other top tokens, the likeliest first."""
    content = []
    for token in tokens:
        sampled_entry = {"token_id": token.token_id, "logprob": token.logprob, "rank": token.rank}
        other_entries = [
            {"token_id": token_id, "logprob": logprob, "rank": rank}
            for rank, (token_id, logprob) in enumerate(token.top_logprobs[: top_count + 1], start=1)
            if token_id != token.token_id
        ]
        content.append({**sampled_entry, "top_logprobs": [sampled_entry, *other_entries][: max(top_count, 1)]})
    return content
