"""The link to a hub elsewhere: records are kept until they are settled, and sent again to whoever serves by then.

A put waits only while the window of records that the hub has not received is full. When a hub answers that is not the
one before (its process was restarted), everything unsettled is sent to it, and open requests are asked again.
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
from transports.zeromq.links import Lent, Link, Token, named
from transports.zeromq.sockets import LoopSocket, Part, new_socket, pack, secure_client, unpack

WINDOW_RECORDS = 64
WINDOW_BYTES = 64 << 20
PATIENCE_SECONDS = 30.0
_HELLO_SECONDS = 0.1
_TAKE_SECONDS = 1.0
_LEAVE_SECONDS = 1.0


class RemoteLink(Link):
    """One handle's connection; made on the event loop that uses it."""

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
        self._hub = ""
        self._unsettled: dict[int, tuple[bytes | memoryview, ...]] = {}
        self._under_way: deque[tuple[int, int]] = deque()
        self._under_way_bytes = 0
        self._received = 0
        self._next = 0
        self._changed = asyncio.Event()
        self._requests: dict[int, tuple[bytes, asyncio.Future[tuple[Any, list[Part]]]]] = {}
        self._request_numbers = itertools.count()
        self._progress = (0, 0)
        self._taking = asyncio.Lock()
        self._asked: asyncio.Task[tuple[Any, list[Part]]] | None = None

        def connected(identity: bytes = b"") -> zmq.Socket[bytes]:
            socket = new_socket(zmq.DEALER, identity=identity)
            try:
                if certificate:
                    secure_client(socket, certificate)
                socket.connect(address)
            except BaseException:
                socket.close(linger=0)
                raise
            return socket

        self._wire = LoopSocket(connected(producer.encode()), self._on_message)
        self._beat = _Beat(connected, producer, lease_time)
        self._greeting = asyncio.create_task(self._keep_greeting())

    async def ready(self, patience: float) -> None:
        """Return when a hub has answered."""
        await self._until(lambda: bool(self._hub), "no hub answers; does the process that serves it run?", patience)
        self._beat.begin()

    async def put(self, frames: Frames, key: str, name: str) -> None:
        nbytes = sum(len(frame) for frame in frames)
        if not self._has_credit(nbytes):
            await self._until(lambda: self._has_credit(nbytes), "the hub receives nothing; is its process alive?")
        number = named(name)[1]
        self._unsettled[number] = (b"P", pack(number, key, name), *frames)
        self._under_way.append((number, nbytes))
        self._under_way_bytes += nbytes
        self._next = number + 1
        if self._hub:
            self._wire.send(*self._unsettled[number])

    async def take(self, timeout: float) -> Lent | None:
        deadline = time.monotonic() + timeout
        async with self._taking:
            while True:
                left = max(0.0, deadline - time.monotonic())
                # The hub has lent a record when it answers; so asking is never cancelled, the next take goes on.
                if self._asked is None:
                    self._asked = asyncio.create_task(self._ask("take", [min(left, _TAKE_SECONDS)]))
                await asyncio.wait([self._asked])
                asked, self._asked = self._asked, None
                value, frames = asked.result()
                if value is not None:
                    token, key, name, redelivered = value
                    return Lent(Token(*token), tuple(frames), key, name, redelivered)
                if left <= _TAKE_SECONDS:
                    return None

    async def settle(self, tokens: Sequence[Token]) -> list[Token]:
        value, _ = await self._ask("settle", list(tokens))
        return [Token(*token) for token in value]

    async def give_back(self, token: Token, delay: float) -> bool:
        return bool((await self._ask("give_back", [token, delay]))[0])

    async def reject(self, token: Token, reason: str) -> bool:
        return bool((await self._ask("reject", [token, reason]))[0])

    async def release(self) -> None:
        await self._ask("release", [])

    async def stats(self) -> QueueStats:
        return QueueStats(*(await self._ask("stats", []))[0])

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        value, _ = await self._ask("dead_letters", [limit])
        return [DeadLetter(id_, tuple(frames), *rest) for id_, frames, *rest in value]

    async def discard(self, letter: DeadLetter) -> None:
        await self._ask("discard", [letter.id])

    async def peek(self, limit: int) -> list[Peeked]:
        value, _ = await self._ask("peek", [limit])
        return [Peeked(tuple(frames), *rest) for frames, *rest in value]

    async def close(self) -> None:
        """Leave what was put with the hub. Raises QueueStorageError where there is none to leave it with."""
        try:
            if self._unsettled:
                await self._until(lambda: self._received >= self._next, "the last records were received by no hub")
            if self._hub:
                await self._ask("leave", [], patience=_LEAVE_SECONDS)
        except QueueStorageError:
            if self._unsettled:
                raise
        finally:
            self._greeting.cancel()
            if self._asked is not None:
                self._asked.cancel()
            self._wire.close()
            await asyncio.to_thread(self._beat.close)

    def _has_credit(self, nbytes: int) -> bool:
        while self._under_way and self._under_way[0][0] < self._received:
            self._under_way_bytes -= self._under_way.popleft()[1]
        return not self._under_way or (
            len(self._under_way) < WINDOW_RECORDS and self._under_way_bytes + nbytes <= WINDOW_BYTES
        )

    async def _ask(self, operation: str, arguments: list[Any], patience: float | None = None) -> tuple[Any, list[Part]]:
        number = next(self._request_numbers)
        answer: asyncio.Future[tuple[Any, list[Part]]] = asyncio.get_running_loop().create_future()
        header = pack(number, operation, arguments)
        self._requests[number] = (header, answer)
        if self._hub:
            self._wire.send(b"Q", header)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if patience is None else patience):
                return await answer
        except TimeoutError:
            raise QueueStorageError(
                f"{self._address}: no hub answers, and {len(self._unsettled)} records of this handle are not settled"
            ) from None
        finally:
            del self._requests[number]

    async def _until(self, condition: Callable[[], bool], otherwise: str, patience: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            self._changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                raise QueueStorageError(f"{self._address}: {otherwise}") from None

    async def _keep_greeting(self) -> None:
        """Hello, again and again: so a new hub is noticed, and records that a broken connection lost are."""
        while True:
            self._wire.send(b"H", pack(*self._hello, next(iter(self._unsettled), self._next)))
            await asyncio.sleep(_HELLO_SECONDS)

    def _on_message(self, message: list[Part]) -> None:
        kind, header, *frames = message
        if kind == b"A":
            number, value = unpack(header)
            if number in self._requests and not self._requests[number][1].done():
                self._requests[number][1].set_result((value, frames))
            return
        if kind == b"S":
            received, settled = unpack(header)
            self._received = max(self._received, received)
            for number in settled:
                self._unsettled.pop(number, None)
        else:
            self._on_welcome(*unpack(header))
        self._changed.set()

    def _on_welcome(self, hub: str, partitions: int, expected: int) -> None:
        if hub != self._hub:
            self._hub, self.partitions = hub, partitions
            self._received = expected
            self._send_again(expected)
            for header, _ in self._requests.values():
                self._wire.send(b"Q", header)
        elif expected < self._next and self._progress == (expected, self._next):
            self._send_again(expected)
        self._received = max(self._received, expected)
        self._progress = (expected, self._next)

    def _send_again(self, first: int) -> None:
        for number, parts in self._unsettled.items():
            if number >= first:
                self._wire.send(*parts)


class _Beat:
    """Tells the hub that this handle lives, from a thread and over a connection of its own."""

    def __init__(self, connect: Callable[[], zmq.Socket[bytes]], handle: str, lease_time: float) -> None:
        self._connect = connect
        self._handle = handle
        self._lease_time = lease_time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name=f"beat-{handle}", daemon=True)

    def begin(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_beating(self) -> None:
        socket = self._connect()
        while not self._stop.wait(self._lease_time / 5):
            socket.send_multipart([b"B", pack(self._handle.encode())])
        socket.close(linger=0)
