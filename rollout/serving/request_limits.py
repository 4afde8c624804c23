"""Limits the size of a request's body, and the time for its head and its body."""

import asyncio
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rollout.serving.protocol import RequestRefused

MAX_BODY_BYTES: Final = 128 << 20
"""Enough for about a hundred large images that are sent inline."""
BODY_TIMEOUT: Final = 60.0
HEAD_TIMEOUT: Final = 30.0


class LimitBody:
    """An ASGI application that refuses a body that is too large or too slow.

    It reads the rest of a body that is too large, so that the client gets the error and not a broken connection.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, timeout: float = BODY_TIMEOUT) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with a `receive` that checks the limits."""
        await self._app(scope, self._limit(receive) if scope["type"] == "http" else receive, send)

    def _limit(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self._timeout
        n_bytes, has_ended = 0, False

        async def receive_limited() -> Message:
            nonlocal n_bytes, has_ended
            while not has_ended:
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                except TimeoutError:
                    raise RequestRefused(f"The body was not complete within {self._timeout:g} s.", status=408) from None
                if message["type"] != "http.request":
                    return message
                n_bytes += len(message.get("body", b""))
                has_ended = not message.get("more_body", False)
                if n_bytes <= self._max_bytes:
                    return message
            if n_bytes > self._max_bytes:
                raise RequestRefused(
                    f"The body has {n_bytes:,} bytes; this engine takes at most {self._max_bytes:,}. Send images as "
                    "file:// references, or send fewer images.",
                    status=413,
                )
            return await receive()

        return receive_limited


class HeadDeadlineProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for the head of a request; without it, uvicorn would wait for ever."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer of the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Start the timer at the first bytes of a head, and stop it when the head is complete."""
        if self._is_between_requests():
            self._start_timer()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
