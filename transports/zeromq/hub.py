"""The hub: the records of a `zmq://` queue, in the memory of the handle that was first to bind its address.

It runs on a thread with an event loop of its own, so that a handle that is busy still serves the others. To each of
those it lends through a MemoryQueue handle of theirs; who is not heard of for the lease time loses what it was lent.

Messages from a remote handle, each a kind, a packed header and the frames of a record:

    H  hello: how it consumes, the number of its first record that is not settled; answered by W
    P  a record, numbered; numbers that were seen or are ahead of the next are passed over
    Q  a request, answered by A
    B  it lives, from a thread of its own

and to it, besides: S, what was received and what is settled, so that it can send and forget.
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
from transports.zeromq.links import LocalLink, Token, named
from transports.zeromq.sockets import LoopSocket, Part, new_socket, pack, secure_server, unpack

_TELL_SECONDS = 0.01
_NO_LIMIT = "high_water=1000000TB"


@dataclass(slots=True, eq=False)
class _Remote:
    """What the hub knows of another handle."""

    link: LocalLink
    expected: int
    seen: float
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Hub:
    """Binds where it is made, which raises zmq.ZMQError if the address is taken or is not of this machine."""

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
        self._settled: deque[str] = deque()
        self._keeper = MemoryQueue(self._url, lease="partition", consume=None)
        self._keeper.watch_settled(self._settled.append)
        self._remotes: dict[bytes, _Remote] = {}
        self._received: deque[list[Part]] = deque()
        self._received_from: set[bytes] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"hub-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    @property
    def backlog_records(self) -> int:
        return self._keeper.backlog_records

    def link(self, lease: Any, consume: Any) -> LocalLink:
        """The way in for the handle that serves."""
        return LocalLink(self.name, MemoryQueue(self._url, lease=lease, consume=consume))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._arrived = asyncio.Event()
        self._wire = LoopSocket(self._socket, self._note_arrived)
        self._ready.set()
        working = [asyncio.create_task(work()) for work in (self._work, self._tell, self._watch)]
        await self._stopped.wait()
        for task in [*working, *(task for remote in self._remotes.values() for task in remote.tasks)]:
            task.cancel()
        self._flush()
        self._wire.close()
        for remote in self._remotes.values():
            await remote.link.close()
        await self._keeper.aclose()

    def _note_arrived(self, message: list[Part]) -> None:
        self._received.append(message)
        self._arrived.set()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._received:
                identity, kind, header, *frames = self._received.popleft()
                await self._handle(bytes(identity), bytes(kind), unpack(header), frames)
            self._flush()

    async def _handle(self, identity: bytes, kind: bytes, header: list[Any], frames: list[Part]) -> None:
        if kind == b"H":
            await self._welcome(identity, *header)
        elif kind == b"B":
            identity = header[0]
        remote = self._remotes.get(identity)
        if remote is None:
            return  # of a hub before this one; it says hello again before long
        remote.seen = time.monotonic()
        if kind == b"P":
            number, key, name = header
            if number == remote.expected:
                await remote.link.put(tuple(frames), key, name)
                remote.expected += 1
                self._received_from.add(identity)
        elif kind == b"Q":
            task = asyncio.create_task(self._answer(identity, remote, *header))
            remote.tasks.add(task)
            task.add_done_callback(remote.tasks.discard)

    async def _welcome(self, identity: bytes, lease: Any, consume: Any, first: int) -> None:
        if identity not in self._remotes:
            fits = consume is None or all(0 <= partition < self.partitions for partition in consume)
            link = self.link(lease, consume if fits else None)
            self._remotes[identity] = _Remote(link, expected=first, seen=time.monotonic())
        self._wire.send(identity, b"W", pack(self.name, self.partitions, self._remotes[identity].expected))

    async def _answer(
        self, identity: bytes, remote: _Remote, request: int, operation: str, arguments: list[Any]
    ) -> None:
        frames: tuple[bytes | memoryview, ...] = ()
        value: Any
        link = remote.link
        if operation == "take":
            lent = await link.take(*arguments)
            value = None if lent is None else (lent.token, lent.key, lent.name, lent.redelivered)
            frames = () if lent is None else lent.frames
        elif operation == "settle":
            value = await link.settle([Token(*token) for token in arguments])
        elif operation == "give_back":
            value = await link.give_back(Token(*arguments[0]), arguments[1])
        elif operation == "reject":
            value = await link.reject(Token(*arguments[0]), arguments[1])
        elif operation == "stats":
            value = astuple(await link.stats())
        elif operation == "dead_letters":
            letters = await link.dead_letters(*arguments)
            value = [(d.id, _packable(d.frames), d.key, d.tag, d.reason) for d in letters]
        elif operation == "discard":
            value = None
            await link.discard(DeadLetter(arguments[0], (), "", "", ""))
        elif operation == "peek":
            seen = await link.peek(*arguments)
            value = [(_packable(p.frames), p.key, p.tag, p.partition, p.position, p.delivered) for p in seen]
        else:
            value = None
            await link.release()
            if operation == "leave":
                await link.close()
                del self._remotes[identity]
        self._wire.send(identity, b"A", pack(request, value), *frames)

    async def _tell(self) -> None:
        """Tell producers what is settled; not at each ack, which would take the interpreter from who acks."""
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            self._flush()

    async def _watch(self) -> None:
        """Take back what was lent to those who are no longer heard of."""
        while True:
            await asyncio.sleep(self._lease_time / 4)
            for remote in list(self._remotes.values()):
                if time.monotonic() - remote.seen > self._lease_time:
                    await remote.link.release()

    def _flush(self) -> None:
        settled = defaultdict(list)
        while self._settled:
            producer, number = named(self._settled.popleft())
            settled[producer.encode()].append(number)
        for identity in {*settled, *self._received_from}:
            if (remote := self._remotes.get(identity)) is not None:
                self._wire.send(identity, b"S", pack(remote.expected, settled.get(identity, [])))
        self._received_from.clear()


def _packable(frames: Frames) -> list[Part]:
    return [bytes(frame) for frame in frames]
