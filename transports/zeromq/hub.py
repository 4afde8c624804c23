"""The hub of a `zmq://` queue. It keeps the records in the memory of the process that bound the address first.

The hub runs on a thread with its own event loop, so that it serves the other handles while its own handle is busy. If
the hub ends because of an error, every call of the handle that serves it raises QueueStorageError. The remote handles
get no answers any more, so their calls raise this error, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

import zmq

from transports.base import Lease
from transports.memory import MemoryQueue
from transports.zeromq.links import LocalHubLink
from transports.zeromq.messages import MessagePart
from transports.zeromq.refusals import Refusals
from transports.zeromq.remote_handles import RemoteHandles
from transports.zeromq.sockets import LoopSocket, new_socket, secure_server

log = logging.getLogger(__name__)

_FLUSH_INTERVAL_SECONDS = 0.01
_NO_LIMIT = "high_water=1000000TB"


class Hub:
    """Serves a queue at an address, from the memory of this process.

    The constructor binds the address. It raises zmq.ZMQError if another process or machine has the address.
    """

    def __init__(self, address: str, *, partitions: int, lease_time: float, certificate: str) -> None:
        self.name = token_hex(8)
        self._address = address
        self._lease_time = lease_time
        self._socket = new_socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MemoryQueue.max_record_bytes)
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
        self._refusals = Refusals(f"zmq hub at {address}")
        self._remote_handles = RemoteHandles(self.name, partitions, self.new_link, self._send, self._refusals)
        self._loop_socket: LoopSocket | None = None
        self._inbox: deque[tuple[list[MessagePart], str]] = deque()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"hub-{self.name}", daemon=True)

    def start(self) -> None:
        """Start the thread of the hub, and wait until it handles messages."""
        self._thread.start()
        self._ready.wait()

    @property
    def backlog_records(self) -> int:
        """The number of records that are not acked."""
        return self._broker_handle.backlog_records

    def new_link(
        self, lease: Lease, consume: Sequence[int] | None, producer: str, *, next_number: int = 0
    ) -> LocalHubLink:
        """Return a new link to this hub, for the handle that serves it or for a remote handle.

        Args:
            lease: whether the link leases whole partitions or single records.
            consume: the partitions that the link may lease. None: all of them.
            producer: the id of the producer whose records the link puts.
            next_number: the number of the producer's next record.
        """
        queue = MemoryQueue(self._url, lease=lease, consume=consume)
        return LocalHubLink(self.name, queue, self._refusals, producer, next_number=next_number)

    def stop(self) -> None:
        """End the hub, and wait for its thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end, None)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._on_loop_exception)
        self._message_arrived = asyncio.Event()
        background_tasks: list[asyncio.Task[None]] = []
        try:
            self._loop_socket = LoopSocket(self._socket, self._on_message)
            for loop_method in (self._handle_messages, self._keep_flushing, self._keep_expiring_leases):
                background_tasks.append(asyncio.create_task(loop_method()))
                background_tasks[-1].add_done_callback(self._on_task_end)
            self._ready.set()
            await self._ended
            self._remote_handles.send_progress(self._take_settled_names())
        except Exception as error:
            log.error("%s: the hub of this queue has failed; start this process again", self._address, exc_info=error)
            self._broker_handle.fail(
                f"{self._address}: the hub of this queue has failed: {error!r}. Start this process again; the "
                "other handles still have the records that they put. Please report this error."
            )
        finally:
            self._ready.set()
            for task in background_tasks:
                task.cancel()
            if self._loop_socket is None:
                self._socket.close(linger=0)
            else:
                self._loop_socket.close()
            await self._remote_handles.close()
            await self._broker_handle.aclose()

    def _on_message(self, message: list[MessagePart], peer: str) -> None:
        self._inbox.append((message, peer))
        self._message_arrived.set()

    def _send(self, *parts: MessagePart) -> None:
        assert self._loop_socket is not None, "the socket exists before the first message arrives"
        self._loop_socket.send(*parts)

    def _end(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._end(task.exception())

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._end(context.get("exception") or RuntimeError(context["message"]))

    async def _handle_messages(self) -> None:
        while True:
            await self._message_arrived.wait()
            self._message_arrived.clear()
            while self._inbox:
                self._remote_handles.handle_message(*self._inbox.popleft())
            self._remote_handles.send_progress(self._take_settled_names())

    async def _keep_flushing(self) -> None:
        """Send producers the settled records at intervals. One message for each ack would contend for the GIL."""
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_SECONDS)
            self._remote_handles.send_progress(self._take_settled_names())

    async def _keep_expiring_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease_time / 4)
            await self._remote_handles.expire_leases(self._lease_time)

    def _take_settled_names(self) -> list[str]:
        return [self._settled_names.popleft() for _ in range(len(self._settled_names))]
