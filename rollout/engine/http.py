"""One HTTP request to one engine: the body of the answer, or an error that says what to do.

It uses aiohttp: a request costs less than with other clients, and the cost does not grow with the requests in flight.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import SecretStr

from rollout.engine.error_answers import error_message, names_logit_bias, refused_sampling_key
from rollout.engine.errors import (
    EngineBroken,
    EngineMisconfigured,
    EngineNotFound,
    EngineRefused,
    EngineUnavailable,
    EngineUnreachable,
    LogitBiasRefused,
)

_UNAVAILABLE_STATUSES = (429, 502, 503, 504)
_BAD_REQUEST_STATUSES = (400, 422)
_CONNECT_TIMEOUT = 10.0
_KEEP_ALIVE_SECONDS = 3.0
"""Seconds that an idle connection is kept. It is less than on the server (uvicorn: 5), which could otherwise close the
connection while a request is on its way."""
_CHUNK_BYTES = 1 << 18
_FIX_BY_STATUS = {
    401: " (is the engine's API key in the environment variable that engine.api_key_env names?)",
    403: " (vLLM answers 403 unless it was started with --enable-scale-out)",
    404: " (is engine.urls the root of the server, without /v1, and does it serve model.name?)",
}


class EngineHttp:
    """The connections to all engines of a client. Use it as an async context manager, within one event loop."""

    def __init__(self, api_key: str | None = None) -> None:
        self._api_key = None if api_key is None else SecretStr(api_key)

    async def __aenter__(self) -> Self:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        # Admission is bounded by the worker's concurrency; aiohttp's default of 100 connections would queue behind it.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        self._client_session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client_session.close()

    async def get(self, url: str) -> bytes:
        """See `post`."""
        return await self._request("GET", url, b"", None)

    async def post(self, url: str, body: bytes, *, session_id: str | None = None) -> bytes:
        """The body of the answer. Deadlines are the caller's: whatever cancels this closes the connection.

        Raises:
            EngineUnreachable: no connection, or it broke, or the answer is not HTTP.
            EngineUnavailable: the engine, or a proxy before it, is busy or not available (429, 502, 503, 504).
            EngineBroken: the engine failed (any other 5xx).
            LogitBiasRefused, EngineRefused: the engine refuses this request (4xx).
        """
        return await self._request("POST", url, body, session_id)

    async def _request(self, method: str, url: str, body: bytes, session_id: str | None) -> bytes:
        headers = {} if session_id is None else {"x-session-id": session_id}
        data: bytes | AsyncIterator[bytes] = body
        if len(body) > _CHUNK_BYTES:
            data, headers["content-length"] = _split_into_chunks(body), str(len(body))
        try:
            async with self._client_session.request(
                method, url, data=data or None, headers=headers, allow_redirects=False
            ) as response:
                content, status = await response.read(), response.status
        except (aiohttp.ClientError, UnicodeError) as error:
            # UnicodeError: an invalid host name, or an answer that has no text where it must have some.
            raise EngineUnreachable(
                f"no answer from the engine at {url}: {str(error) or type(error).__name__}. "
                "Is it running, and is engine.urls right?"
            ) from error
        if 200 <= status < 300:
            return content
        answer = f"the engine at {url} answered {status}"
        message = f"{answer}: {error_message(content)}{_FIX_BY_STATUS.get(status, '')}"
        if status in _BAD_REQUEST_STATUSES:
            if (refusal := refused_sampling_key(content)) is not None:
                ending = "" if refusal.endswith(".") else "."
                message = f"{refusal}{ending} So {answer} to this key of engine.sampling or chat(sampling=…)."
            raise (LogitBiasRefused if names_logit_bias(content) else EngineRefused)(message)
        if status in _UNAVAILABLE_STATUSES:
            raise EngineUnavailable(message)
        if status in _FIX_BY_STATUS:
            raise (EngineNotFound if status == 404 else EngineMisconfigured)(message)
        if status >= 500:
            raise EngineBroken(f"{message} (its own log says more)")
        raise EngineRefused(message)


async def _split_into_chunks(body: bytes) -> AsyncIterator[bytes]:
    """Split a body. Inline images make bodies of megabytes; written in one piece, each would block other rollouts."""
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]
