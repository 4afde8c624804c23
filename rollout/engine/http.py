"""One exchange with one engine: a body out, a body back, or an error that says what to do.

The aiohttp transport under httpx's interface: its cost for one request does not grow with the requests in flight, as
that of httpx's own connection pool does.
"""

from collections.abc import AsyncIterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from rollout.engine.errors import EngineBroken, EngineMisconfigured, EngineRefused, EngineUnavailable, EngineUnreachable

_BUSY = (429, 502, 503, 504)
_CONNECT_TIMEOUT = 10.0
_KEEP_ALIVE = 3.0
"""Seconds that an idle connection is kept: less than a server keeps it (uvicorn: 5), which would else close it just
when a request is on its way."""
_CHUNK = 1 << 18
_CURES = {
    401: " (is the engine's API key in the environment variable that engine.api_key_env names?)",
    403: " (vLLM answers 403 unless it was started with --enable-scale-out)",
    404: " (is engine.urls the root of the server, without /v1, and does it serve model.name?)",
}


class EngineHttp:
    """The connections to all engines of a client. Use it as an async context manager, within one event loop."""

    def __init__(self, api_key: str | None = None) -> None:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._headers = httpx.Headers(headers)
        self._extensions = {"timeout": {"connect": _CONNECT_TIMEOUT, "read": None, "pool": None}}

    async def __aenter__(self) -> Self:
        self._transport = AiohttpTransport(client=_unlimited_session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    async def get(self, url: str) -> bytes:
        """See `post`."""
        return await self._exchange("GET", url, b"", None)

    async def post(self, url: str, body: bytes, *, session: str | None = None) -> bytes:
        """The body of the answer. Deadlines are the caller's: whatever cancels this closes the connection.

        Raises:
            EngineUnreachable: no connection, or it broke, or what came back is not HTTP.
            EngineUnavailable: the engine, or a proxy before it, is busy or away (429, 502, 503, 504).
            EngineBroken: the engine failed (any other 5xx).
            EngineRefused: the engine does not want this request (4xx).
        """
        return await self._exchange("POST", url, body, session)

    async def _exchange(self, method: str, url: str, body: bytes, session: str | None) -> bytes:
        headers = self._headers
        if session is not None:
            headers = httpx.Headers([*headers.raw, (b"x-session-id", session.encode())])
        request = _request(method, url, headers, body)
        request.extensions = self._extensions
        try:
            response = await self._transport.handle_async_request(request)
            try:
                content = await response.aread()
            finally:
                # A body that broke off, or that nobody waits for any more, would else hold its connection.
                await response.aclose()
        except (httpx.RequestError, aiohttp.ClientError) as error:
            # aiohttp's own errors are of answers that are not HTTP; the transport lets them pass.
            raise EngineUnreachable(
                f"no answer from the engine at {url}: {str(error) or type(error).__name__}. "
                "Is it running, and is engine.urls right?"
            ) from error
        status = response.status_code
        if 200 <= status < 300:
            return content
        told = f"{url} answered {status}: {_reason(content)}{_CURES.get(status, '')}"
        if status in _BUSY:
            raise EngineUnavailable(told)
        if status in _CURES:
            raise EngineMisconfigured(told)
        raise (EngineBroken if status >= 500 else EngineRefused)(told)


def _request(method: str, url: str, headers: httpx.Headers, body: bytes) -> httpx.Request:
    if len(body) <= _CHUNK:
        return httpx.Request(method, _parsed(url), headers=headers, content=body)
    # Images inline make bodies of megabytes; written at once, each would hold up every other rollout.
    sized = httpx.Headers([*headers.raw, (b"content-length", str(len(body)).encode())])
    return httpx.Request(method, _parsed(url), headers=sized, stream=_Chunks(body))


class _Chunks(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _CHUNK):
            yield self._body[start : start + _CHUNK]


_parsed = lru_cache(maxsize=1024)(httpx.URL)
"""Parsing a URL is a sixth of what a request costs, and there are few."""


def _unlimited_session() -> aiohttp.ClientSession:
    # Admission is bounded by the worker's concurrency; aiohttp's default of 100 connections would queue behind it.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


def _reason(content: bytes) -> str:
    try:
        found: Any = orjson.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = " ".join(content[:4000].decode(errors="replace").split())
    return str(found)[:2000]
