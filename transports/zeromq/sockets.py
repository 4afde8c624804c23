"""A ZeroMQ socket on an event loop. The loop reads messages when they arrive, so a cancelled call cannot lose any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.auth

from transports.errors import QueueURLError
from transports.zeromq.messages import MessagePart

_MAX_MESSAGES_PER_READ = 8
_ZERO_COPY_BYTES = 48 << 10
# Plain integers, because combining the library's enums would take microseconds for each part of a message.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_SNDMORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class LoopSocket:
    """Sends messages at once, and calls `on_message` with each received message and the address of its sender."""

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[MessagePart], str], None]) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd: int = socket.FD
        self._read_scheduled = False
        self._loop.add_reader(self._fd, self._read_messages)
        self._schedule_read()

    def send(self, *parts: MessagePart) -> None:
        """Send a message that consists of these parts, without waiting."""
        for part in parts[:-1]:
            self._socket.send(part, _NOBLOCK_SNDMORE, copy=len(part) < _ZERO_COPY_BYTES)
        self._socket.send(parts[-1], _NOBLOCK, copy=len(parts[-1]) < _ZERO_COPY_BYTES)
        # ZeroMQ signals only that new messages have come. A send may use up this signal, so look for messages now.
        self._schedule_read()

    def close(self) -> None:
        """Close the socket. Messages that are not sent yet have one more second."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=1000)

    def _schedule_read(self) -> None:
        if not self._read_scheduled:
            self._read_scheduled = True
            self._loop.call_soon(self._read_messages)

    def _read_messages(self) -> None:
        self._read_scheduled = False
        for _ in range(_MAX_MESSAGES_PER_READ):
            if self._socket.closed:
                return
            try:
                frame = self._socket.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                return
            message, peer = [_frame_to_part(frame)], str(frame.get("Peer-Address"))
            while frame.more:  # all parts of a message arrive together, so this never waits
                frame = self._socket.recv(_NOBLOCK, copy=False)
                message.append(_frame_to_part(frame))
            self._on_message(message, peer)
        self._schedule_read()


def _frame_to_part(frame: zmq.Frame) -> MessagePart:
    if len(frame) < _ZERO_COPY_BYTES:
        copied: bytes = frame.bytes
        return copied
    view: memoryview = frame.buffer.toreadonly()
    return view


def new_socket(socket_type: int, *, identity: bytes = b"") -> zmq.Socket[bytes]:
    """Return a socket that restores a broken connection by itself, and drops no messages."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(socket_type)
    # No limit: at a limit, the library would drop messages. The window of RemoteHubLink limits them instead.
    socket.set_hwm(0)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def secure_server(socket: zmq.Socket[bytes], certificate: str) -> None:
    """Use a certificate on the socket of a hub. Raises QueueURLError if the file has no secret key or is not valid."""
    public, secret = _load_certificate(certificate)
    if secret is None:
        raise QueueURLError(
            f"{certificate}: this certificate has no secret key, but a hub needs one; use the file with the secret "
            "key, or set serve=false"
        )
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True


def secure_client(socket: zmq.Socket[bytes], certificate: str) -> None:
    """Use a certificate on the socket of a remote handle. Raises QueueURLError if the file is not valid."""
    socket.curve_serverkey = _load_certificate(certificate)[0]
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


def _load_certificate(path: str) -> tuple[bytes, bytes | None]:
    try:
        keys: tuple[bytes, bytes | None] = zmq.auth.load_certificate(Path(path))
        return keys
    except (OSError, ValueError) as error:
        raise QueueURLError(
            f"{path}: this is not a CURVE certificate ({error}); create one with zmq.auth.create_certificates"
        ) from error
