"""The contract of an engine transport: it sends requests to engines, and returns their answers."""

from abc import ABC, abstractmethod
from typing import Self

from pydantic import SecretStr

from rollout.engine.error_answers import require_success

CONNECT_TIMEOUT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 3.0
"""Seconds for which an idle connection is kept open.

The server (uvicorn) keeps it open for 5 seconds. Ours must be closed earlier, so that the server does not close a
connection while we send a request.
"""


class EngineTransport(ABC):
    """Sends requests to engines. Use it as an async context manager, within one event loop.

    A subclass implements `send`. There are three of them: `AiohttpTransport` for turns, `HttpxTransport` for all other
    requests, and `StandInEngine` for tests.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:  # noqa: B027 - without connections there is nothing to close
        pass

    async def get(self, url: str) -> bytes:
        """Send a GET request and return the body of the answer. The errors are those of `post`."""
        return require_success(url, *await self.send("GET", url, b""))

    async def post(self, url: str, body: bytes, *, session_id: str | None = None) -> bytes:
        """Send a POST request and return the body of the answer.

        The caller sets the deadline. If the call is cancelled, the connection is closed.

        Args:
            url: the whole URL.
            body: JSON, or empty.
            session_id: sent as `x-session-id`, for a proxy that keeps a session on one engine.

        Raises:
            EngineUnreachable: there is no connection, it broke, or the answer is not HTTP.
            EnginePaused: the engine refuses new requests, because it is paused for new weights (503).
            EngineUnavailable: the engine, or a proxy before it, is busy or not available (429, 502, 503, 504).
            EngineBroken: the engine failed (any other 5xx).
            LogitBiasRefused, EngineRefused: the engine refuses this request (4xx).
        """
        return require_success(url, *await self.send("POST", url, body, session_id=session_id))

    @abstractmethod
    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        """Send one request, without following redirects, and return the status and the body of the answer.

        Raises:
            EngineUnreachable: there is no connection, it broke, or the answer is not HTTP.
        """


def request_headers(api_key: SecretStr | None) -> dict[str, str]:
    """Return the headers that every request has."""
    headers = {"content-type": "application/json", "accept": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key.get_secret_value()}"
    return headers
