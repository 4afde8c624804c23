"""One connection to the gateway. It notes when a connection is reset after an answer was sent.

What a program sends can contain its key, so nothing of it is in the log, or in the answer to a request that is no HTTP.
"""

import asyncio
import fcntl
import socket
import termios
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from rollout.gateway.dialects.base import RefusalReason, RequestRefused
from rollout.gateway.dialects.chat import ChatDialect
from rollout.gateway.timeouts import GatewayTimeouts
from rollout.metrics.worker import WorkerMetrics

log = structlog.get_logger()

_MAX_LINE_BYTES = 16_384
RequestHandlerFunction = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class GatewayServer(web.Server):
    """The connections of one listener or several.

    A connection that was accepted just before the shutdown may begin after it; it is closed at once.
    """

    def __init__(self, handle: RequestHandlerFunction) -> None:
        super().__init__(handle, handler_cancellation=True, access_log=None)
        self._is_shut_down = False

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """See `aiohttp.web.Server`."""
        super().connection_made(handler, transport)
        if self._is_shut_down:
            transport.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """See `aiohttp.web.Server`."""
        self._is_shut_down = True
        self.pre_shutdown()  # without it, each connection that waits for a request would take the whole timeout
        await super().shutdown(timeout)


class GatewayConnection(RequestHandler):
    """A connection of a program.

    Attributes:
        on_reset: called if the connection is reset before its next request; set after each answer.
    """

    __slots__ = (
        "_first_request_timeout",
        "_first_request_timer",
        "_peer_closed",
        "_socket",
        "_stack",
        "on_reset",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: WorkerMetrics,
        timeouts: GatewayTimeouts,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=timeouts.keepalive,
            access_log=None,  # type: ignore[arg-type]  # a path may contain a key
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            auto_decompress=False,  # `compression.py` stops at the limit, and refuses what it cannot read
        )
        self.on_reset: Callable[[], None] | None = None
        self._stack = ExitStack()
        self._stack.enter_context(metrics.count_gateway_connection())
        self._first_request_timeout = timeouts.first_request
        self._first_request_timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._peer_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.WriteTransport)
        transport.set_write_buffer_limits(0)  # so that all bytes that a response waited for are with the system
        self._socket = transport.get_extra_info("socket")
        loop = asyncio.get_running_loop()
        self._first_request_timer = loop.call_later(self._first_request_timeout, self._close_if_idle)

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

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is no valid HTTP, and close the connection. The text does not repeat the request."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer was sent already")
        refusal = RequestRefused(f"The request is not valid HTTP ({type(exc).__name__}).", reason=RefusalReason.INVALID)
        response = web.Response(
            body=ChatDialect().write_refusal(refusal), status=refusal.reason.status, content_type="application/json"
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log that a connection failed, without the text of the error, which can contain what the program sent."""
        error = options.get("exc_info")
        log.warning("a connection of a program failed", error=type(error).__name__)

    def _close_if_idle(self) -> None:
        self.force_close()
