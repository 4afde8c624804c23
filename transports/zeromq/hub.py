"""The hub: the records of a `zmq://` queue, in the memory of the handle that was first to bind its address.

It runs on a thread with an event loop of its own, so that a busy handle still serves the others. For each remote handle
it has a MemoryQueue handle that leases records to it. A remote handle without a sign of life for the lease time loses
its leases.

Messages from a remote handle, each with a kind, a packed header and the frames of a record:

    H  hello: how it consumes, and the number of its first unsettled record; answered by W
    P  a record with its number; a number that is not the next one is ignored
    Q  a request; answered by A
    B  a heartbeat, from a thread of its own

The hub also sends S to it: which records were received and which are settled, so that it can send more and forget them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from dataclasses import astuple, dataclass, field
from secrets import token_hex
from typing import Any

import zmq

from transports.base import DeadLetter, Frames
from transports.memory import MemoryQueue
from transports.zeromq.links import LeaseToken, LocalHubLink, parse_record_name
from transports.zeromq.sockets import LoopSocket, MessagePart, new_socket, pack, secure_server, unpack

_FLUSH_INTERVAL_SECONDS = 0.01
_NO_LIMIT = "high_water=1000000TB"


@dataclass(slots=True, eq=False)
class _RemoteHandle:
    """What the hub knows of another handle."""

    link: LocalHubLink
    next_number: int
    last_seen: float
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Hub:
    """Binds in its constructor, which raises zmq.ZMQError if the address is taken or not on this machine."""

    def __init__(self, address: str, *, partitions: int, lease_time: float, certificate: str) -> None:
        self.name = token_hex(8)
        self.partitions = partitions
        self._lease_time = lease_time
        self._socket = new_socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            if certificate:
                secure_server(self._socket, certificate)
            self._socket.bind(address)
        except BaseException:
            self._socket.close(linger=0)
            raise
        self._url = f"memory://zmq-{self.name}?partitions={partitions}&{_NO_LIMIT}"
        self._settled_names: deque[str] = deque()
        self._broker_handle = MemoryQueue(self._url, lease="partition", consume=None)
        self._broker_handle.watch_settled(self._settled_names.append)
        self._remotes: dict[bytes, _RemoteHandle] = {}
        self._inbox: deque[list[MessagePart]] = deque()
        self._senders: set[bytes] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"hub-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    @property
    def backlog_records(self) -> int:
        return self._broker_handle.backlog_records

    def new_link(self, lease: Any, consume: Any) -> LocalHubLink:
        """A link into this hub: for the handle that serves, or for a remote handle."""
        return LocalHubLink(self.name, MemoryQueue(self._url, lease=lease, consume=consume))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._message_arrived = asyncio.Event()
        self._loop_socket = LoopSocket(self._socket, self._on_message)
        self._ready.set()
        background_tasks = [
            asyncio.create_task(loop_method())
            for loop_method in (self._handle_messages, self._keep_flushing, self._keep_expiring_leases)
        ]
        await self._stopped.wait()
        for task in [*background_tasks, *(task for remote in self._remotes.values() for task in remote.tasks)]:
            task.cancel()
        self._send_settled()
        self._loop_socket.close()
        for remote in self._remotes.values():
            await remote.link.close()
        await self._broker_handle.aclose()

    def _on_message(self, message: list[MessagePart]) -> None:
        self._inbox.append(message)
        self._message_arrived.set()

    async def _handle_messages(self) -> None:
        while True:
            await self._message_arrived.wait()
            self._message_arrived.clear()
            while self._inbox:
                identity, kind, header, *frames = self._inbox.popleft()
                await self._handle_message(bytes(identity), bytes(kind), unpack(header), frames)
            self._send_settled()

    async def _handle_message(
        self, identity: bytes, message_kind: bytes, header: list[Any], frames: list[MessagePart]
    ) -> None:
        if message_kind == b"H":
            await self._handle_hello(identity, *header)
        elif message_kind == b"B":
            identity = header[0]
        remote = self._remotes.get(identity)
        if remote is None:
            return  # it is for an earlier hub; the handle says hello again soon
        remote.last_seen = time.monotonic()
        if message_kind == b"P":
            number, key, name = header
            if number == remote.next_number:
                await remote.link.put(tuple(frames), key, name)
                remote.next_number += 1
                self._senders.add(identity)
        elif message_kind == b"Q":
            task = asyncio.create_task(self._handle_request(identity, remote, *header))
            remote.tasks.add(task)
            task.add_done_callback(remote.tasks.discard)

    async def _handle_hello(self, identity: bytes, lease: Any, consume: Any, next_number: int) -> None:
        if identity not in self._remotes:
            is_valid = consume is None or all(0 <= partition < self.partitions for partition in consume)
            link = self.new_link(lease, consume if is_valid else None)
            self._remotes[identity] = _RemoteHandle(link, next_number=next_number, last_seen=time.monotonic())
        self._loop_socket.send(identity, b"W", pack(self.name, self.partitions, self._remotes[identity].next_number))

    async def _handle_request(
        self, identity: bytes, remote: _RemoteHandle, request_number: int, operation: str, arguments: list[Any]
    ) -> None:
        frames: tuple[bytes | memoryview, ...] = ()
        value: Any
        link = remote.link
        if operation == "take":
            leased = await link.receive(*arguments)
            value = None if leased is None else (leased.token, leased.key, leased.name, leased.redelivered)
            frames = () if leased is None else leased.frames
        elif operation == "settle":
            value = await link.ack([LeaseToken(*token) for token in arguments])
        elif operation == "give_back":
            value = await link.nack(LeaseToken(*arguments[0]), arguments[1])
        elif operation == "reject":
            value = await link.reject(LeaseToken(*arguments[0]), arguments[1])
        elif operation == "stats":
            value = astuple(await link.stats())
        elif operation == "dead_letters":
            letters = await link.dead_letters(*arguments)
            value = [(d.id, _copy_frames(d.frames), d.key, d.tag, d.reason) for d in letters]
        elif operation == "discard":
            value = None
            await link.discard(DeadLetter(arguments[0], (), "", "", ""))
        elif operation == "peek":
            peeked = await link.peek(*arguments)
            value = [(_copy_frames(p.frames), p.key, p.tag, p.partition, p.position, p.delivered) for p in peeked]
        else:
            value = None
            await link.release()
            if operation == "leave":
                await link.close()
                del self._remotes[identity]
        self._loop_socket.send(identity, b"A", pack(request_number, value), *frames)

    async def _keep_flushing(self) -> None:
        """Send producers what is settled, at intervals: at each ack it would take time from the thread that acks."""
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_SECONDS)
            self._send_settled()

    async def _keep_expiring_leases(self) -> None:
        """Release the leases of remote handles without a sign of life."""
        while True:
            await asyncio.sleep(self._lease_time / 4)
            for remote in list(self._remotes.values()):
                if time.monotonic() - remote.last_seen > self._lease_time:
                    await remote.link.release()

    def _send_settled(self) -> None:
        settled_numbers = defaultdict(list)
        while self._settled_names:
            producer, number = parse_record_name(self._settled_names.popleft())
            settled_numbers[producer.encode()].append(number)
        for identity in {*settled_numbers, *self._senders}:
            if (remote := self._remotes.get(identity)) is not None:
                self._loop_socket.send(identity, b"S", pack(remote.next_number, settled_numbers.get(identity, [])))
        self._senders.clear()


def _copy_frames(frames: Frames) -> list[MessagePart]:
    return [bytes(frame) for frame in frames]
