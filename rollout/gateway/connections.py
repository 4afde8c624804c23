"""One connection to the gateway. It notes when a connection is reset after an answer was sent."""

import asyncio
import fcntl
import socket
import termios
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

    __slots__ = ("_first_request_timer", "_peer_closed", "_socket", "_stack", "on_reset")

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
        self._socket: socket.socket | None = None
        self._peer_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.WriteTransport)
        transport.set_write_buffer_limits(0)  # so that all bytes that a response waited for are with the system
        self._socket = transport.get_extra_info("socket")
        self._first_request_timer = asyncio.get_running_loop().call_later(_FIRST_REQUEST_TIMEOUT, self._close_if_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol.connection_lost`; an error means that the program reset the connection."""
        if self._first_request_timer is not None:
            self._first_request_timer.cancel()
        if self.on_reset is not None and (exc is not None or self._lost_bytes()):
            self.on_reset()
        self.on_reset = None
        self._stack.close()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """See `asyncio.Protocol.eof_received`."""
        self._peer_closed = True
        super().eof_received()

    def note_request(self) -> None:
        """A request has arrived, so the answers before it were received."""
        self.on_reset = None
        if self._first_request_timer is not None:
            self._first_request_timer.cancel()
            self._first_request_timer = None

    def _lost_bytes(self) -> bool:
        """Whether the program closed the connection before it had all bytes.

        If it closes first and the answer comes then, we read the end of its stream, and never the reset after it.
        """
        if not self._peer_closed or self._socket is None:
            return False
        try:
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return True
            unsent = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # a system without this request
            return False
        return any(unsent)

    def _close_if_idle(self) -> None:
        self.force_close()
