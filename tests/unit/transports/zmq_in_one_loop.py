"""A `zmq://` hub and its handles on one event loop, without sockets and threads."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex

from transports.base import Lease
from transports.memory import MemoryQueue
from transports.zeromq.links import LocalHubLink
from transports.zeromq.messages import MessagePart
from transports.zeromq.refusals import Refusals
from transports.zeromq.remote import RemoteHubLink
from transports.zeromq.remote_handles import RemoteHandles


class OneLoopHub:
    """A hub and its handles. The loop delivers messages to handles later; the hub handles its own at once."""

    def __init__(self, partitions: int = 1) -> None:
        self.name = token_hex(8)
        self.refusals = Refusals("hub")
        self.sent: list[tuple[bytes, list[bytes]]] = []
        """The messages of the hub to identities that have no link here."""
        self._held: list[tuple[RemoteHubLink, list[bytes]]] | None = None
        self._url = f"memory://{self.name}?partitions={partitions}"
        self._settled: list[str] = []
        self._broker_handle = MemoryQueue(self._url, lease="record", consume=None)
        self._broker_handle.watch_settled(self._settled.append)
        self._handles = RemoteHandles(self.name, partitions, self._new_link, self._send, self.refusals)
        self._links: dict[bytes, RemoteHubLink] = {}

    def receive(self, identity: bytes, *parts: MessagePart) -> None:
        """Give the hub a message from the connection of this identity."""
        self._handles.handle_message([identity, *parts], "10.0.0.9")
        settled, self._settled[:] = list(self._settled), []
        self._handles.send_progress(settled)

    def link(self, identity: bytes = b"") -> RemoteHubLink:
        """Return the link of a new handle."""
        identity = identity or token_hex(8).encode()

        def connect(on_message: Callable[[Sequence[MessagePart], str], None]) -> "_OneLoopConnection":
            return _OneLoopConnection(lambda *parts: self.receive(identity, *parts))

        self._links[identity] = RemoteHubLink("tcp://10.0.0.1:5", connect, lease="record", consume=None)
        return self._links[identity]

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Hold back all messages to handles until the end of the context."""
        self._held = []
        yield
        held, self._held = self._held, None
        for link, message in held:
            link.handle_message(message, "10.0.0.1")

    async def close(self) -> None:
        await self._handles.close()
        await self._broker_handle.aclose()

    def _new_link(
        self, lease: Lease, consume: Sequence[int] | None, producer: str, *, next_number: int = 0
    ) -> LocalHubLink:
        queue = MemoryQueue(self._url, lease=lease, consume=consume)
        return LocalHubLink(self.name, queue, self.refusals, producer, next_number=next_number)

    def _send(self, identity: MessagePart, *parts: MessagePart) -> None:
        message = [bytes(part) for part in parts]
        if (link := self._links.get(bytes(identity))) is None:
            self.sent.append((bytes(identity), message))
        elif self._held is not None:
            self._held.append((link, message))
        else:
            asyncio.get_running_loop().call_soon(link.handle_message, message, "10.0.0.1")


class _OneLoopConnection:
    def __init__(self, send: Callable[..., None]) -> None:
        self.send = send

    def start_heartbeat(self) -> None:
        """Do nothing: no lease of this hub expires."""

    async def close(self) -> None:
        """Do nothing: there is no socket."""
