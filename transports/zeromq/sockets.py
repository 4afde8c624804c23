"""A ZeroMQ socket on an event loop, read whenever it can be and never by a receive that somebody might cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgpack  # type: ignore[import-untyped]
import zmq
import zmq.auth

from transports.errors import QueueURLError

_MESSAGES_AT_ONCE = 8
_ZERO_COPY_BYTES = 48 << 10
# Plain numbers: what the library has as enums takes microseconds to put together, for each part of each message.
_AT_ONCE = int(zmq.NOBLOCK)
_AT_ONCE_WITH_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

Part: TypeAlias = bytes | memoryview
"""Of a message: bytes where it is small, else a view of what the library has received or is to send."""


class LoopSocket:
    """Sends at once and hands every message that arrives to a callback, on the loop that made it."""

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[Part]], None]) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd: int = socket.FD
        self._reading_soon = False
        self._loop.add_reader(self._fd, self._read)
        self._read_soon()

    def send(self, *parts: Part) -> None:
        for part in parts[:-1]:
            self._socket.send(part, _AT_ONCE_WITH_MORE, copy=len(part) < _ZERO_COPY_BYTES)
        self._socket.send(parts[-1], _AT_ONCE, copy=len(parts[-1]) < _ZERO_COPY_BYTES)
        # The descriptor tells of changes, not of states: what a send has found to be readable it does not tell again.
        self._read_soon()

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=1000)

    def _read_soon(self) -> None:
        if not self._reading_soon:
            self._reading_soon = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._reading_soon = False
        for _ in range(_MESSAGES_AT_ONCE):
            if self._socket.closed:
                return
            try:
                frame = self._socket.recv(_AT_ONCE, copy=False)
            except zmq.Again:
                return
            message = [_received(frame)]
            while frame.more:  # the parts of a message arrive together
                frame = self._socket.recv(_AT_ONCE, copy=False)
                message.append(_received(frame))
            self._on_message(message)
        self._read_soon()


def _received(part: zmq.Frame) -> Part:
    if len(part) < _ZERO_COPY_BYTES:
        copied: bytes = part.bytes
        return copied
    lent: memoryview = part.buffer.toreadonly()
    return lent


def new_socket(kind: int, *, identity: bytes = b"") -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    # Nothing is dropped by a full queue of the library: how much is under way is limited by our own window.
    socket.set_hwm(0)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def secure_server(socket: zmq.Socket[bytes], certificate: str) -> None:
    public, secret = _certificate(certificate)
    if secret is None:
        raise QueueURLError(f"{certificate}: only a certificate with a secret key can serve; use it with serve=false")
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True


def secure_client(socket: zmq.Socket[bytes], certificate: str) -> None:
    socket.curve_serverkey = _certificate(certificate)[0]
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


def pack(*values: Any) -> bytes:
    packed: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    return packed


def unpack(data: Part) -> list[Any]:
    values: list[Any] = msgpack.unpackb(data, unicode_errors="surrogatepass", use_list=True)
    return values


def _certificate(path: str) -> tuple[bytes, bytes | None]:
    try:
        pair: tuple[bytes, bytes | None] = zmq.auth.load_certificate(Path(path))
        return pair
    except (OSError, ValueError) as error:
        raise QueueURLError(
            f"{path}: not a CURVE certificate ({error}); make one with zmq.auth.create_certificates"
        ) from error
