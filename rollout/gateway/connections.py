"""One connection to the gateway. It notes when a connection is reset after an answer was sent."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from rollout.metrics.worker import WorkerMetrics

_KEEPALIVE_TIMEOUT = 75.0
_FIRST_REQUEST_TIMEOUT = 30.0
"""Seconds in which a new connection must have sent the head of its first request."""
_MAX_LINE_BYTES = 16_384


class GatewayConnection(RequestHandler):
    """A connection of a program.

    Attributes:
        on_reset: called if the connection is reset before its next request; set after each answer.
    """

    __slots__ = ("_first_request_timer", "_stack", "on_reset")

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop, metrics: WorkerMetrics) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=_KEEPALIVE_TIMEOUT,
            access_log=None,  # type: ignore[arg-type]  # a path may contain a key
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )
        self.on_reset: Callable[[], None] | None = None
        self._stack = ExitStack()
        self._stack.enter_context(metrics.count_gateway_connection())
        self._first_request_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        self._first_request_timer = asyncio.get_running_loop().call_later(_FIRST_REQUEST_TIMEOUT, self._close_if_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol.connection_lost`; an error means that the other side reset the connection."""
        if self._first_request_timer is not None:
            self._first_request_timer.cancel()
        if exc is not None and self.on_reset is not None:
            self.on_reset()
        self.on_reset = None
        self._stack.close()
        super().connection_lost(exc)

    def note_request(self) -> None:
        """A request has arrived, so the answers before it were received."""
        self.on_reset = None
        if self._first_request_timer is not None:
            self._first_request_timer.cancel()
            self._first_request_timer = None

    def _close_if_idle(self) -> None:
        self.force_close()
