"""Stands between a program and the gateway: passes everything on, notes the requests, and answers one with a fault."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
from aiohttp import hdrs, web

from rollout.doctor.agent.faults import DIALECTS, Fault, error_body, split_path
from rollout.errors import RolloutError
from rollout.gateway.compression import BodyDecompressor
from rollout.gateway.dialects.base import RequestRefused

_MAX_LINE_BYTES = 16_384
_MAX_BODY_BYTES = 1 << 30
_OWN_HEADERS = frozenset(
    name.lower()
    for name in (
        hdrs.HOST,
        hdrs.CONNECTION,
        hdrs.CONTENT_LENGTH,
        hdrs.TRANSFER_ENCODING,
        hdrs.EXPECT,
        hdrs.UPGRADE,
        hdrs.TE,
        hdrs.TRAILER,
        hdrs.DATE,
        hdrs.SERVER,
    )
)
"""The headers that belong to one connection, so the proxy writes its own."""


class ProxyUnavailable(RolloutError):
    """The proxy cannot listen at the address of the section `gateway`."""


@dataclass(slots=True)
class SeenRequest:
    """A request of the program.

    Attributes:
        method: its HTTP method.
        path: its path, without a key and without a query.
        body: its body, decompressed.
        at: when it came, on the monotonic clock.
        status: the status of the answer; None if there was none.
        error: the body of an answer that is an error.
        fault: the fault that it got instead of an answer; None for an answer of the gateway.
    """

    method: str
    path: str
    body: bytes = field(repr=False)
    at: float
    status: int | None = None
    error: bytes = b""
    fault: Fault | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks for an answer of the policy."""
        return self.method == "POST" and self.path in DIALECTS

    @property
    def dialect(self) -> str | None:
        """The name of its dialect; None if it does not ask for an answer."""
        return DIALECTS[self.path].name if self.asks else None

    @property
    def has_tools(self) -> bool:
        """Whether it has tools, so that it belongs to a conversation about the task."""
        try:
            return bool(orjson.loads(self.body).get("tools"))
        except (ValueError, AttributeError):
            return False


class AgentProxy:
    """A proxy in front of one gateway, which listens at a unix socket.

    Attributes:
        requests: the requests in the order in which they came.
        changed: set whenever a request comes; the one who waits clears it.
    """

    def __init__(self, gateway: Path, fault: Fault | None, is_struck: Callable[[SeenRequest], bool]) -> None:
        """Make a proxy, which does not listen yet.

        Args:
            gateway: the unix socket of the gateway.
            fault: the fault; None: everything is passed on.
            is_struck: says whether a request gets the fault. The fault begins with the first such request.
        """
        self.requests: list[SeenRequest] = []
        self.changed = asyncio.Event()
        self._gateway = gateway
        self._fault = fault
        self._is_struck = is_struck

    @property
    def struck(self) -> SeenRequest | None:
        """The first request that got the fault; None if there is none yet."""
        return next((request for request in self.requests if request.fault is not None), None)

    @asynccontextmanager
    async def listening(
        self, *, host: str | None = None, port: int = 0, path: Path | None = None, gateway: Path | None = None
    ) -> AsyncIterator[int]:
        """Listen at a host or at a unix socket in a `with` block, and yield the port. Raises ProxyUnavailable.

        Args:
            host: the address to listen at.
            port: the port; 0: a free one.
            path: the unix socket to listen at instead.
            gateway: the socket to which requests from here go; None: that of the proxy.
        """
        async with AsyncExitStack() as stack:
            connector = aiohttp.UnixConnector(str(gateway or self._gateway), limit=0, force_close=True)
            session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0),
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
            )
            await stack.enter_async_context(session)

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                return await self._handle(request, session)

            server = web.Server(
                handle,
                handler_cancellation=True,
                access_log=None,
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
                auto_decompress=False,
            )
            runner = web.ServerRunner(server, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site: web.BaseSite
            if path is not None:
                site = web.UnixSite(runner, path)
                stack.callback(path.unlink, missing_ok=True)
            else:
                site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                raise ProxyUnavailable(
                    f"doctor cannot listen at {site.name} ({reason}). Stop what listens there, or set gateway.port to "
                    "0, or correct gateway.host."
                ) from None
            address = runner.addresses[0]
            yield 0 if isinstance(address, str) else int(address[1])

    async def _handle(self, request: web.BaseRequest, session: aiohttp.ClientSession) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw = bytearray()
        async for data in request.content.iter_any():
            raw += data
        seen = SeenRequest(request.method, split_path(request.path), _decompressed(request, raw), time.monotonic())
        if self._gets_fault(seen):
            seen.fault = self._fault
        self.requests.append(seen)
        self.changed.set()
        match seen.fault:
            case Fault.REFUSED | Fault.OVERFLOW:
                seen.status, seen.error = 400, error_body(seen.fault, seen.path)
                return web.Response(body=seen.error, status=400, content_type="application/json")
            case Fault.DROPPED:
                return _cut(request)
        return await self._pass_on(request, bytes(raw), seen, session)

    def _gets_fault(self, seen: SeenRequest) -> bool:
        """Whether a request gets the fault: the first one that the play names, and later ones if the fault lasts."""
        if self._fault is None or not seen.asks:
            return False
        first = self.struck
        if first is None:
            return self._is_struck(seen)
        if self._fault is Fault.OVERFLOW:
            return seen.has_tools or not first.has_tools
        return self._fault is Fault.REFUSED

    async def _pass_on(
        self, request: web.BaseRequest, body: bytes, seen: SeenRequest, session: aiohttp.ClientSession
    ) -> web.StreamResponse:
        url = f"http://gateway{request.raw_path}"
        try:
            async with session.request(
                request.method, url, headers=_passed_headers(request.headers), data=body or None, allow_redirects=False
            ) as answer:
                seen.status = answer.status
                response = web.StreamResponse(status=answer.status, headers=_passed_headers(answer.headers))
                if answer.content_length is not None:
                    response.content_length = answer.content_length
                if seen.fault is Fault.CUT:
                    return await _send_half(request, response, await answer.read())
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    if answer.status >= 400:
                        seen.error += data
                    await response.write(data)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, ConnectionError):
            return _cut(request)


async def _send_half(request: web.BaseRequest, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0.1)  # so that the program has read it, and does not lose it with the connection
    return _cut(request)


def _cut(request: web.BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _passed_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers that are passed on; a header may be there several times."""
    return [(name, value) for name, value in headers.items() if name.lower() not in _OWN_HEADERS]


def _decompressed(request: web.BaseRequest, raw: bytes | bytearray) -> bytes:
    """Return the body as text; the bytes themselves if they cannot be read, which the gateway then says."""
    try:
        decompressor = BodyDecompressor(request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
        return decompressor.read(bytes(raw), _MAX_BODY_BYTES)
    except RequestRefused:
        return bytes(raw)
