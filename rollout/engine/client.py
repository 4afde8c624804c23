"""The client of one or several engines: deadlines, retries of what may be retried, and typed errors.

A request that could not be delivered, or was answered 429 or 502-504, goes out again after a growing, jittered pause.
Everything else is final. Every request has a deadline over all of its tries.
"""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import anyio
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from rollout.engine.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreachable,
    ModelNotServed,
)
from rollout.engine.protocol import GenerateRequest, Generation, decode_response, encode_request

_TRY_AGAIN = (429, 502, 503, 504)
_TRIES = 4


class EngineClient:
    """Speaks to the engines that serve one model. Use it as an async context manager."""

    def __init__(self, urls: Sequence[str], model: str, *, timeout: float) -> None:
        self.model = model
        self.max_model_len: int | None = None
        self._timeout = timeout
        self._in_flight = dict.fromkeys((url.rstrip("/") for url in urls), 0)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # One transport for all engines: the aiohttp transport's cost does not grow with its connections.
        transport = AiohttpTransport(limits=httpx.Limits(max_connections=None))
        client = httpx.AsyncClient(transport=transport, timeout=self._timeout)
        self._http = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def check(self) -> None:
        """Reach every engine, and learn the shortest context among them.

        Raises:
            EngineUnreachable, EngineTimeout, EngineRefused: an engine does not answer as vLLM does.
            ModelNotServed: an engine serves other models.
        """
        lengths = []
        for url in self._in_flight:
            answer = await self._send("GET", f"{url}/v1/models", None, deadline=min(self._timeout, 30.0))
            try:
                served = {entry["id"]: entry.get("max_model_len") for entry in orjson.loads(answer)["data"]}
            except (ValueError, KeyError, TypeError):
                raise EngineRefused(f"{url}/v1/models did not list models; is this a vLLM server?") from None
            if self.model not in served:
                raise ModelNotServed(
                    f"{url} does not serve the model {self.model!r}; it serves {', '.join(sorted(served)) or 'none'}. "
                    "Set model.name to one of these."
                )
            lengths.append(served[self.model])
        known = [length for length in lengths if length]
        self.max_model_len = min(known) if known else None

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion.

        Raises:
            EngineError: see `rollout.engine.errors`; nothing that is returned needs checking again.
        """
        body = encode_request(request, self.model)
        url = min(self._in_flight, key=lambda one: self._in_flight[one])
        self._in_flight[url] += 1
        try:
            answer = await self._send("POST", f"{url}/inference/v1/generate", body, deadline=self._timeout)
        finally:
            self._in_flight[url] -= 1
        return decode_response(answer, request)

    async def _send(self, method: str, url: str, body: bytes | None, *, deadline: float) -> bytes:
        last: EngineError | None = None
        with anyio.move_on_after(deadline):
            for attempt in range(_TRIES):
                if attempt:
                    await anyio.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)  # noqa: S311 - jitter
                try:
                    return await self._once(method, url, body)
                except (EngineUnavailable, EngineUnreachable) as error:
                    last = error
        raise last or EngineTimeout(f"{url} did not answer within {deadline:g} s (engine.timeout).")

    async def _once(self, method: str, url: str, body: bytes | None) -> bytes:
        try:
            response = await self._http.request(method, url, content=body, headers={"content-type": "application/json"})
        except httpx.TransportError as error:
            raise EngineUnreachable(
                f"no answer from the engine at {url}: {str(error) or type(error).__name__}. "
                "Is it running, and is engine.urls right?"
            ) from error
        if response.is_success:
            return response.content
        reason = _reason(response)
        if response.status_code in _TRY_AGAIN:
            raise EngineUnavailable(f"{url} answered {response.status_code}: {reason}")
        if response.status_code == 403:
            reason += " (vLLM answers 403 unless it was started with --enable-scale-out)"
        refusal = EngineUnavailable if response.status_code >= 500 else EngineRefused
        raise refusal(f"{url} answered {response.status_code}: {reason}")


def _reason(response: httpx.Response) -> str:
    try:
        found: Any = orjson.loads(response.content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = response.text
    return str(found)[:2000]
