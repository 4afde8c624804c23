"""The transport for all requests except turns: for checks of engines, and for new weights."""

import ssl
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Self

import httpx
from pydantic import SecretStr

from rollout.engine.error_answers import unreachable
from rollout.engine.transport import CONNECT_TIMEOUT_SECONDS, KEEP_ALIVE_SECONDS, EngineTransport, request_headers


class HttpxTransport(EngineTransport):
    """Sends requests with httpx; see `EngineTransport`."""

    def __init__(self, api_key: str | None = None) -> None:
        self._api_key = None if api_key is None else SecretStr(api_key)

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            headers=request_headers(self._api_key),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # keeps no cookies
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS),
            verify=system_tls_settings(),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        """See `EngineTransport.send`."""
        headers = {} if session_id is None else {"x-session-id": session_id}
        try:
            response = await self._client.request(method, url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ExceptionGroup) as error:  # a group: a port over 65535
            raise unreachable(url, error) from error
        return response.status_code, response.content


@cache
def system_tls_settings() -> ssl.SSLContext:
    """Return settings that trust the system's certificates, as aiohttp does. Cached, because reading takes 20 ms."""
    return ssl.create_default_context()
