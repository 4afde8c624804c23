"""The transport for turns, with aiohttp. A request takes little CPU time, even if many requests are in flight."""

from collections.abc import AsyncIterator
from typing import Self

import aiohttp
from pydantic import SecretStr

from rollout.engine.error_answers import unreachable
from rollout.engine.transport import CONNECT_TIMEOUT_SECONDS, KEEP_ALIVE_SECONDS, EngineTransport, request_headers

_CHUNK_BYTES = 1 << 18


class AiohttpTransport(EngineTransport):
    """Sends requests with aiohttp; see `EngineTransport`."""

    def __init__(self, api_key: str | None = None) -> None:
        self._api_key = None if api_key is None else SecretStr(api_key)

    async def __aenter__(self) -> Self:
        # The worker limits the requests in flight. With aiohttp's limit of 100 connections, some would wait here, too.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._client_session = aiohttp.ClientSession(
            connector=connector,
            headers=request_headers(self._api_key),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client_session.close()

    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        """See `EngineTransport.send`."""
        headers = {} if session_id is None else {"x-session-id": session_id}
        data: bytes | AsyncIterator[bytes] = body
        if len(body) > _CHUNK_BYTES:
            data, headers["content-length"] = _split_into_chunks(body), str(len(body))
        try:
            async with self._client_session.request(
                method, url, data=data or None, headers=headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, UnicodeError) as error:
            # UnicodeError: the host name is not valid, or a line of the answer is not text.
            raise unreachable(url, error) from error


async def _split_into_chunks(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in chunks. With inline images it has megabytes; written in one piece, it blocks other rollouts."""
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]
