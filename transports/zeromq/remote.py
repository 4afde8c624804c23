"""The link to the hub of another handle. It keeps records until they are settled, and sends them again to a new hub.

A put waits only if too many records are on their way to the hub (`WINDOW_RECORDS`, `WINDOW_BYTES`). When the process of
the hub is restarted, a new hub answers. The link then sends all unsettled records and all open requests again. A
malformed message from the hub has no effect. A call that waits for the hub raises an error at its deadline, or at once
if the hub has another protocol version.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from transports.base import DeadLetter, Frames, Lease, Peeked, QueueStats
from transports.errors import QueueStorageError, QueueVersionMismatch
from transports.zeromq.links import HubLink, LeasedRecord, LeaseToken
from transports.zeromq.messages import (
    PROTOCOL_VERSION,
    SAME_RELEASE,
    Answer,
    MalformedMessage,
    MessagePart,
    Progress,
    VersionRefusal,
    Welcome,
    flag_from_answer,
    leased_from_answer,
    letters_from_answer,
    nothing_from_answer,
    pack,
    peeked_from_answer,
    read_hub_message,
    stats_from_answer,
    tokens_from_answer,
)
from transports.zeromq.refusals import Refusals

WINDOW_RECORDS = 64
"""The limit for the number of records that are on their way to the hub."""
WINDOW_BYTES = 64 << 20
"""The limit for the number of bytes that are on their way to the hub."""
HUB_TIMEOUT = 30.0
"""Seconds that a call waits for the hub before it raises an error."""
_HELLO_INTERVAL = 0.1
_RECEIVE_TIMEOUT = 1.0
_LEAVE_TIMEOUT = 1.0
_ACKS_PER_REQUEST = 10_000

ValueT = TypeVar("ValueT")


class HubConnection(Protocol):
    """The methods of `ZmqConnection` that a link needs."""

    def send(self, *parts: MessagePart) -> None:
        """Send a message that consists of these parts."""

    def start_heartbeat(self) -> None:
        """Start to send heartbeats to the hub."""

    async def close(self) -> None:
        """Close the connection."""


class RemoteHubLink(HubLink):
    """The link of one handle to a hub in another process. Create it on the event loop that uses it.

    `connect` gets a function and returns a connection. The connection calls this function with each message and the
    address of its sender.
    """

    def __init__(
        self,
        address: str,
        connect: Callable[[Callable[[Sequence[MessagePart], str], None]], HubConnection],
        *,
        lease: Lease,
        consume: Sequence[int] | None,
    ) -> None:
        self.partitions = 0
        self._address = address
        self._hello = (lease, consume)
        self._hub_name = ""
        self._version_problem = ""
        self._refusals = Refusals(f"zmq handle of {address}")
        self._unsettled: dict[int, tuple[bytes | memoryview, ...]] = {}
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._received_below = 0
        self._next_number = 0
        self._state_changed = asyncio.Event()
        self._requests: dict[int, tuple[bytes, asyncio.Future[Answer]]] = {}
        self._request_numbers = itertools.count()
        self._last_welcome = (0, 0)
        self._receive_lock = asyncio.Lock()
        self._receive_task: asyncio.Task[LeasedRecord | None] | None = None
        self._connection = connect(self.handle_message)
        self._hello_task = asyncio.create_task(self._keep_sending_hello())

    @property
    def refused_messages(self) -> int:
        """The number of malformed messages from the hub."""
        return self._refusals.count

    async def wait_until_ready(self, timeout: float) -> None:
        """Wait until a hub has answered, and start the heartbeat. Raises QueueStorageError after `timeout` seconds."""
        await self._wait_until(
            lambda: bool(self._hub_name),
            "no hub answers; check that the process that serves it runs, with the same release",
            timeout,
        )
        self._connection.start_heartbeat()

    async def put(self, frames: Frames, key: str, tag: str) -> None:
        """See `HubLink.put`."""
        nbytes = sum(len(frame) for frame in frames)
        if not self._has_window_room(nbytes):
            await self._wait_until(
                lambda: self._has_window_room(nbytes), "the hub receives no records; check that its process runs"
            )
        number = self._next_number
        self._unsettled[number] = (b"P", pack(number, key, tag), *frames)
        self._in_flight.append((number, nbytes))
        self._in_flight_bytes += nbytes
        self._next_number = number + 1
        if self._hub_name:
            self._connection.send(*self._unsettled[number])

    async def receive(self, timeout: float) -> LeasedRecord | None:
        """See `HubLink.receive`."""
        deadline = time.monotonic() + timeout
        async with self._receive_lock:
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                # A record is leased when the hub answers. So the request is not cancelled with this call; the next
                # call awaits the same request.
                if self._receive_task is None:
                    arguments = [min(remaining, _RECEIVE_TIMEOUT)]
                    self._receive_task = asyncio.create_task(self._request("take", arguments, leased_from_answer))
                await asyncio.wait([self._receive_task])
                task, self._receive_task = self._receive_task, None
                if (leased := task.result()) is not None or remaining <= _RECEIVE_TIMEOUT:
                    return leased

    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        """See `HubLink.ack`."""
        stale = []
        for start in range(0, len(tokens), _ACKS_PER_REQUEST):
            stale += await self._request("ack", [tokens[start : start + _ACKS_PER_REQUEST]], tokens_from_answer)
        return stale

    async def nack(self, token: LeaseToken, delay: float) -> bool:
        """See `HubLink.nack`."""
        return await self._request("nack", [token, delay], flag_from_answer)

    async def reject(self, token: LeaseToken, reason: str) -> bool:
        """See `HubLink.reject`."""
        return await self._request("reject", [token, reason], flag_from_answer)

    async def release(self) -> None:
        """See `HubLink.release`."""
        await self._request("release", [], nothing_from_answer)

    async def stats(self) -> QueueStats:
        """See `HubLink.stats`."""
        return await self._request("stats", [], stats_from_answer)

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """See `HubLink.dead_letters`."""
        return await self._request("dead_letters", [limit], letters_from_answer)

    async def discard(self, letter: DeadLetter) -> None:
        """See `HubLink.discard`."""
        await self._request("discard", [letter.id], nothing_from_answer)

    async def peek(self, limit: int) -> list[Peeked]:
        """See `HubLink.peek`."""
        return await self._request("peek", [limit], peeked_from_answer)

    async def close(self) -> None:
        """Wait until the hub has all records, and leave it. Raises QueueStorageError if no hub receives the records."""
        try:
            if self._unsettled:
                await self._wait_until(
                    lambda: self._received_below >= self._next_number,
                    "no hub received the last records; check that its process runs",
                )
            if self._hub_name:
                await self._request("leave", [], nothing_from_answer, timeout=_LEAVE_TIMEOUT)
        except QueueStorageError:
            if self._unsettled:
                raise
        finally:
            self._hello_task.cancel()
            if self._receive_task is not None:
                self._receive_task.cancel()
            await self._connection.close()

    def handle_message(self, parts: Sequence[MessagePart], peer: str) -> None:
        """Handle a message from the hub. If it is malformed, count and log it."""
        try:
            message = read_hub_message(parts)
            if isinstance(message, Answer):
                _, answer = self._requests.get(message.number, (b"", None))
                if answer is not None and not answer.done():
                    answer.set_result(message)
            elif isinstance(message, Progress):
                self._on_progress(message)
            elif isinstance(message, Welcome):
                self._on_welcome(message)
            else:
                self._on_version_refusal(message)
        except MalformedMessage as error:
            self._refusals.add(
                peer, error, f"find the program that uses the address {self._address}, and {SAME_RELEASE}"
            )

    def _has_window_room(self, nbytes: int) -> bool:
        while self._in_flight and self._in_flight[0][0] < self._received_below:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        return not self._in_flight or (
            len(self._in_flight) < WINDOW_RECORDS and self._in_flight_bytes + nbytes <= WINDOW_BYTES
        )

    async def _request(
        self,
        operation: str,
        arguments: list[Any],
        read_value: Callable[[Any, Frames], ValueT],
        timeout: float | None = None,
    ) -> ValueT:
        if self._version_problem:
            raise QueueVersionMismatch(self._version_problem)
        number = next(self._request_numbers)
        header = pack(number, operation, arguments)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._requests[number] = (header, future)
        if self._hub_name:
            self._connection.send(b"Q", header)
        try:
            async with asyncio.timeout(HUB_TIMEOUT if timeout is None else timeout):
                answer = await future
        except TimeoutError:
            raise self._hub_error(
                f"no hub answers, and {len(self._unsettled)} records of this handle are not settled; check that the "
                "process of the hub runs"
            ) from None
        finally:
            del self._requests[number]
        if answer.problem:
            raise QueueStorageError(f"{self._address}: the hub could not do {operation!r}: {answer.problem}")
        try:
            return read_value(answer.value, answer.frames)
        except MalformedMessage as error:
            raise QueueStorageError(
                f"{self._address}: the hub's answer to {operation!r} is malformed: {error}. Find the program that "
                f"uses this address, and {SAME_RELEASE}."
            ) from error

    async def _wait_until(self, condition: Callable[[], bool], problem: str, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (HUB_TIMEOUT if timeout is None else timeout)
        while not condition():
            if self._version_problem:
                raise QueueVersionMismatch(self._version_problem)
            self._state_changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._state_changed.wait()
            except TimeoutError:
                raise self._hub_error(problem) from None

    def _hub_error(self, problem: str) -> QueueStorageError:
        refused = self._refusals.count
        malformed = f". The hub sent {refused} malformed message(s); the last problem: {self._refusals.last_problem}"
        return QueueStorageError(f"{self._address}: {problem}{malformed if refused else ''}")

    async def _keep_sending_hello(self) -> None:
        """Send `hello` messages at intervals. The answers show a new hub, or records that a broken connection lost."""
        while True:
            self._connection.send(
                f"H{PROTOCOL_VERSION}".encode(), pack(*self._hello, next(iter(self._unsettled), self._next_number))
            )
            await asyncio.sleep(_HELLO_INTERVAL)

    def _on_progress(self, progress: Progress) -> None:
        self._check_number(progress.received_below)
        self._received_below = max(self._received_below, progress.received_below)
        for number in progress.settled:
            self._unsettled.pop(number, None)
        self._state_changed.set()

    def _on_welcome(self, welcome: Welcome) -> None:
        expected = self._check_number(welcome.expected)
        if welcome.hub != self._hub_name:
            self._hub_name, self.partitions, self._version_problem = welcome.hub, welcome.partitions, ""
            self._received_below = expected
            self._resend_from(expected)
            for header, _ in self._requests.values():
                self._connection.send(b"Q", header)
        elif expected < self._next_number and self._last_welcome == (expected, self._next_number):
            self._resend_from(expected)
        self._received_below = max(self._received_below, expected)
        self._last_welcome = (expected, self._next_number)
        self._state_changed.set()

    def _on_version_refusal(self, refusal: VersionRefusal) -> None:
        """Make all waiting calls raise QueueVersionMismatch, because the hub has another protocol version."""
        if refusal.version == PROTOCOL_VERSION:
            raise MalformedMessage("the hub refuses the version that it uses itself")
        self._hub_name = ""
        self._version_problem = (
            f"{self._address}: the hub uses version {refusal.version} of the zmq:// protocol, but this process "
            f"uses version {PROTOCOL_VERSION}; {SAME_RELEASE}."
        )
        for _, answer in self._requests.values():
            if not answer.done():
                answer.set_exception(QueueVersionMismatch(self._version_problem))
        self._state_changed.set()

    def _check_number(self, number: int) -> int:
        """Return the number. Raises MalformedMessage if the hub says that it has records that were never sent."""
        if number > self._next_number:
            raise MalformedMessage(f"the hub has {number} records of this handle, but only {self._next_number} exist")
        return number

    def _resend_from(self, first: int) -> None:
        for number, message in self._unsettled.items():
            if number >= first:
                self._connection.send(*message)
