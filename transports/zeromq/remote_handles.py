"""Handles the messages of a hub's remote handles. This module has no socket; the hub receives and sends the messages.

Each remote handle has its own link to the hub, so it has its own leases. The hub refuses and counts a malformed
message, which then has no other effect. A remote handle loses its leases if it sends no heartbeat for the lease time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

from transports.base import DeadLetter, Frames, Lease
from transports.errors import QueueError
from transports.zeromq.links import LocalHubLink, parse_record_name
from transports.zeromq.messages import (
    PROTOCOL_VERSION,
    SAME_RELEASE,
    Heartbeat,
    Hello,
    MalformedMessage,
    MessagePart,
    OtherVersion,
    Put,
    Request,
    check_identity,
    leased_to_answer,
    letters_to_answer,
    pack,
    peeked_to_answer,
    read_handle_message,
)
from transports.zeromq.refusals import Refusals

log = logging.getLogger(__name__)


class LinkMaker(Protocol):
    """Makes a link from a handle to the hub."""

    def __call__(
        self, lease: Lease, consume: Sequence[int] | None, producer: str, *, next_number: int = 0
    ) -> LocalHubLink:
        """Return the link. `Hub.new_link` implements this."""


@dataclass(slots=True, eq=False)
class _RemoteHandle:
    """The state that the hub keeps for one remote handle."""

    link: LocalHubLink
    last_seen: float
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class RemoteHandles:
    """Handles the messages of all remote handles of one hub, on the hub's event loop."""

    def __init__(
        self, hub_name: str, partitions: int, new_link: LinkMaker, send: Callable[..., None], refusals: Refusals
    ) -> None:
        self._hub_name = hub_name
        self._partitions = partitions
        self._new_link = new_link
        self._send = send
        self._refusals = refusals
        self._handles: dict[bytes, _RemoteHandle] = {}
        self._progressed: set[bytes] = set()

    def handle_message(self, parts: Sequence[MessagePart], peer: str) -> None:
        """Handle a message. `parts` begins with the identity of its connection; `peer` is the address of the sender."""
        try:
            self._handle(bytes(parts[0]), parts[1:])
        except OtherVersion as error:
            if error.version > 1:  # a handle of version 1 does not understand this answer
                self._send(parts[0], b"V", str(PROTOCOL_VERSION).encode())
            self._refusals.add(peer, error, f"this hub uses version {PROTOCOL_VERSION}: {SAME_RELEASE}")
        except (MalformedMessage, QueueError) as error:
            self._refusals.add(peer, error, f"find the program that sends to this address, and {SAME_RELEASE}")

    def send_progress(self, settled_names: Iterable[str]) -> None:
        """Send each producer a message about which of its records were received, and which are settled."""
        settled_numbers = defaultdict(list)
        for name in settled_names:
            producer, number = parse_record_name(name)
            settled_numbers[producer.encode()].append(number)
        for identity in {*settled_numbers, *self._progressed}:
            if (handle := self._handles.get(identity)) is not None:
                self._send(identity, b"S", pack(handle.link.next_number, settled_numbers.get(identity, [])))
        self._progressed.clear()

    async def expire_leases(self, lease_time: float) -> None:
        """End the leases of all handles that have sent no heartbeat for `lease_time` seconds."""
        for handle in list(self._handles.values()):
            if time.monotonic() - handle.last_seen > lease_time:
                await handle.link.release()

    async def close(self) -> None:
        """Cancel all running requests, and close all links."""
        tasks = [task for handle in self._handles.values() for task in handle.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for handle in self._handles.values():
            await handle.link.close()

    def _handle(self, identity: bytes, parts: Sequence[MessagePart]) -> None:
        message = read_handle_message(parts)
        if isinstance(message, Hello):
            self._welcome(identity, message)
        elif isinstance(message, Heartbeat):
            identity = message.identity
        handle = self._handles.get(identity)
        if handle is None:
            return  # the message was for an earlier hub at this address; the handle will soon send a `hello` message
        handle.last_seen = time.monotonic()
        if isinstance(message, Put):
            if message.number == handle.link.next_number:
                handle.link.put_now(message.frames, message.key, message.tag)
                self._progressed.add(identity)
        elif isinstance(message, Request):
            task = asyncio.create_task(self._answer(identity, handle, message))
            handle.tasks.add(task)
            task.add_done_callback(handle.tasks.discard)

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if identity not in self._handles:
            is_valid = hello.consume is None or all(partition < self._partitions for partition in hello.consume)
            link = self._new_link(
                hello.lease,
                hello.consume if is_valid else None,  # the handle checks this itself and raises the error
                check_identity(identity),
                next_number=hello.next_number,
            )
            self._handles[identity] = _RemoteHandle(link, last_seen=time.monotonic())
        self._send(identity, b"W", pack(self._hub_name, self._partitions, self._handles[identity].link.next_number))

    async def _answer(self, identity: bytes, handle: _RemoteHandle, request: Request) -> None:
        try:
            value, frames = await self._do(identity, handle, request)
            header = pack(request.number, "", value)
        except Exception as error:  # the handle gets the error, and the hub continues for the other handles
            if not isinstance(error, QueueError):
                log.exception("the hub could not do %r for a handle; please report this error", request.operation)
            header, frames = pack(request.number, str(error)[:1000] or repr(error), None), ()
        self._send(identity, b"A", header, *frames)

    async def _do(self, identity: bytes, handle: _RemoteHandle, request: Request) -> tuple[Any, Frames]:
        link, arguments = handle.link, request.arguments
        match request.operation:
            case "take":
                return leased_to_answer(await link.receive(*arguments))
            case "ack":
                return await link.ack(*arguments), ()
            case "nack":
                return await link.nack(*arguments), ()
            case "reject":
                return await link.reject(*arguments), ()
            case "stats":
                return astuple(await link.stats()), ()
            case "dead_letters":
                return letters_to_answer(await link.dead_letters(*arguments))
            case "discard":
                await link.discard(DeadLetter(arguments[0], (), "", "", ""))
            case "peek":
                return peeked_to_answer(await link.peek(*arguments))
            case "release":
                await link.release()
            case "leave":
                await link.release()
                await link.close()
                self._handles.pop(identity, None)
        return None, ()
