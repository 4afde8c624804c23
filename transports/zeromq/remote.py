"""The link to the hub of another handle: records are kept until they are settled, and sent again to a new hub.

A put waits only while the window of records that the hub has not received is full. When a new hub answers (its process
was restarted), all unsettled records and all open requests are sent to it again.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from transports.base import DeadLetter, Frames, Peeked, QueueStats
from transports.errors import QueueStorageError
from transports.zeromq.links import HubLink, LeasedRecord, LeaseToken, parse_record_name
from transports.zeromq.sockets import LoopSocket, MessagePart, new_socket, pack, secure_client, unpack

WINDOW_RECORDS = 64
WINDOW_BYTES = 64 << 20
HUB_TIMEOUT = 30.0
_HELLO_INTERVAL = 0.1
_RECEIVE_TIMEOUT = 1.0
_LEAVE_TIMEOUT = 1.0


class RemoteHubLink(HubLink):
    """The connection of one handle; created on the event loop that uses it."""

    def __init__(
        self,
        address: str,
        producer: str,
        *,
        hello: tuple[str, Sequence[int] | None],
        lease_time: float,
        certificate: str,
    ) -> None:
        self.partitions = 0
        self._address = address
        self._hello = hello
        self._hub_name = ""
        self._unsettled: dict[int, tuple[bytes | memoryview, ...]] = {}
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._received_below = 0
        self._next_number = 0
        self._state_changed = asyncio.Event()
        self._requests: dict[int, tuple[bytes, asyncio.Future[tuple[Any, list[MessagePart]]]]] = {}
        self._request_numbers = itertools.count()
        self._last_welcome = (0, 0)
        self._receive_lock = asyncio.Lock()
        self._receive_task: asyncio.Task[tuple[Any, list[MessagePart]]] | None = None

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

        self._loop_socket = LoopSocket(connect(producer.encode()), self._on_message)
        self._heartbeat = _HeartbeatSender(connect, producer, lease_time)
        self._hello_task = asyncio.create_task(self._keep_sending_hello())

    async def wait_until_ready(self, timeout: float) -> None:
        """Return when a hub has answered."""
        await self._wait_until(
            lambda: bool(self._hub_name), "no hub answers; does the process that serves it run?", timeout
        )
        self._heartbeat.start()

    async def put(self, frames: Frames, key: str, name: str) -> None:
        nbytes = sum(len(frame) for frame in frames)
        if not self._has_window_room(nbytes):
            await self._wait_until(
                lambda: self._has_window_room(nbytes), "the hub receives nothing; is its process alive?"
            )
        number = parse_record_name(name)[1]
        self._unsettled[number] = (b"P", pack(number, key, name), *frames)
        self._in_flight.append((number, nbytes))
        self._in_flight_bytes += nbytes
        self._next_number = number + 1
        if self._hub_name:
            self._loop_socket.send(*self._unsettled[number])

    async def receive(self, timeout: float) -> LeasedRecord | None:
        deadline = time.monotonic() + timeout
        async with self._receive_lock:
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                # The hub has leased a record when it answers. So the request is never cancelled; the next receive uses
                # it.
                if self._receive_task is None:
                    self._receive_task = asyncio.create_task(self._request("take", [min(remaining, _RECEIVE_TIMEOUT)]))
                await asyncio.wait([self._receive_task])
                task, self._receive_task = self._receive_task, None
                value, frames = task.result()
                if value is not None:
                    token, key, name, redelivered = value
                    return LeasedRecord(LeaseToken(*token), tuple(frames), key, name, redelivered)
                if remaining <= _RECEIVE_TIMEOUT:
                    return None

    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        value, _ = await self._request("settle", list(tokens))
        return [LeaseToken(*token) for token in value]

    async def nack(self, token: LeaseToken, delay: float) -> bool:
        return bool((await self._request("give_back", [token, delay]))[0])

    async def reject(self, token: LeaseToken, reason: str) -> bool:
        return bool((await self._request("reject", [token, reason]))[0])

    async def release(self) -> None:
        await self._request("release", [])

    async def stats(self) -> QueueStats:
        return QueueStats(*(await self._request("stats", []))[0])

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        value, _ = await self._request("dead_letters", [limit])
        return [DeadLetter(id_, tuple(frames), *rest) for id_, frames, *rest in value]

    async def discard(self, letter: DeadLetter) -> None:
        await self._request("discard", [letter.id])

    async def peek(self, limit: int) -> list[Peeked]:
        value, _ = await self._request("peek", [limit])
        return [Peeked(tuple(frames), *rest) for frames, *rest in value]

    async def close(self) -> None:
        """Wait until the hub has all records, and leave it. Raises QueueStorageError if no hub receives them."""
        try:
            if self._unsettled:
                await self._wait_until(
                    lambda: self._received_below >= self._next_number, "the last records were received by no hub"
                )
            if self._hub_name:
                await self._request("leave", [], timeout=_LEAVE_TIMEOUT)
        except QueueStorageError:
            if self._unsettled:
                raise
        finally:
            self._hello_task.cancel()
            if self._receive_task is not None:
                self._receive_task.cancel()
            self._loop_socket.close()
            await asyncio.to_thread(self._heartbeat.close)

    def _has_window_room(self, nbytes: int) -> bool:
        while self._in_flight and self._in_flight[0][0] < self._received_below:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        return not self._in_flight or (
            len(self._in_flight) < WINDOW_RECORDS and self._in_flight_bytes + nbytes <= WINDOW_BYTES
        )

    async def _request(
        self, operation: str, arguments: list[Any], timeout: float | None = None
    ) -> tuple[Any, list[MessagePart]]:
        number = next(self._request_numbers)
        answer: asyncio.Future[tuple[Any, list[MessagePart]]] = asyncio.get_running_loop().create_future()
        header = pack(number, operation, arguments)
        self._requests[number] = (header, answer)
        if self._hub_name:
            self._loop_socket.send(b"Q", header)
        try:
            async with asyncio.timeout(HUB_TIMEOUT if timeout is None else timeout):
                return await answer
        except TimeoutError:
            raise QueueStorageError(
                f"{self._address}: no hub answers, and {len(self._unsettled)} records of this handle are not settled"
            ) from None
        finally:
            del self._requests[number]

    async def _wait_until(self, condition: Callable[[], bool], problem: str, timeout: float = HUB_TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self._state_changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._state_changed.wait()
            except TimeoutError:
                raise QueueStorageError(f"{self._address}: {problem}") from None

    async def _keep_sending_hello(self) -> None:
        """Send hello repeatedly, to notice a new hub and records that a broken connection lost."""
        while True:
            self._loop_socket.send(b"H", pack(*self._hello, next(iter(self._unsettled), self._next_number)))
            await asyncio.sleep(_HELLO_INTERVAL)

    def _on_message(self, message: list[MessagePart]) -> None:
        message_kind, header, *frames = message
        if message_kind == b"A":
            number, value = unpack(header)
            if number in self._requests and not self._requests[number][1].done():
                self._requests[number][1].set_result((value, frames))
            return
        if message_kind == b"S":
            received, settled = unpack(header)
            self._received_below = max(self._received_below, received)
            for number in settled:
                self._unsettled.pop(number, None)
        else:
            self._on_welcome(*unpack(header))
        self._state_changed.set()

    def _on_welcome(self, hub: str, partitions: int, expected: int) -> None:
        if hub != self._hub_name:
            self._hub_name, self.partitions = hub, partitions
            self._received_below = expected
            self._resend_from(expected)
            for header, _ in self._requests.values():
                self._loop_socket.send(b"Q", header)
        elif expected < self._next_number and self._last_welcome == (expected, self._next_number):
            self._resend_from(expected)
        self._received_below = max(self._received_below, expected)
        self._last_welcome = (expected, self._next_number)

    def _resend_from(self, first: int) -> None:
        for number, message in self._unsettled.items():
            if number >= first:
                self._loop_socket.send(*message)


class _HeartbeatSender:
    """Sends heartbeats of this handle to the hub, from a thread and over a connection of its own."""

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
