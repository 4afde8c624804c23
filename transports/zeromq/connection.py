"""The connection of a handle to the hub: one socket for messages, and another one for heartbeats."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import zmq

from transports.zeromq.messages import MessagePart, pack
from transports.zeromq.sockets import LoopSocket, new_socket, secure_client


class ZmqConnection:
    """The two sockets of a handle. Create it on the event loop that uses it."""

    def __init__(
        self,
        on_message: Callable[[Sequence[MessagePart], str], None],
        *,
        address: str,
        producer: str,
        lease_time: float,
        certificate: str,
    ) -> None:
        def connect(identity: bytes = b"") -> zmq.Socket[bytes]:
            socket = new_socket(zmq.DEALER, identity=identity)
            try:
                if certificate:
                    secure_client(socket, certificate)
                socket.connect(address)
            except BaseException:
                socket.close(linger=0)
                raise
            return socket

        self._loop_socket = LoopSocket(connect(producer.encode()), on_message)
        self._heartbeat = _HeartbeatSender(connect, producer, lease_time)

    def send(self, *parts: MessagePart) -> None:
        """Send a message that consists of these parts."""
        self._loop_socket.send(*parts)

    def start_heartbeat(self) -> None:
        """Start the thread that sends heartbeats to the hub."""
        self._heartbeat.start()

    async def close(self) -> None:
        """End the heartbeat, and close both sockets."""
        self._loop_socket.close()
        await asyncio.to_thread(self._heartbeat.close)


class _HeartbeatSender:
    """Sends heartbeats to the hub from a thread, over a separate connection."""

    def __init__(self, connect: Callable[[], zmq.Socket[bytes]], producer: str, lease_time: float) -> None:
        self._connect = connect
        self._producer = producer
        self._lease_time = lease_time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name=f"beat-{producer}", daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_sending(self) -> None:
        socket = self._connect()
        while not self._stop.wait(self._lease_time / 5):
            socket.send_multipart([b"B", pack(self._producer.encode())])
        socket.close(linger=0)
