"""The floors that the transports are compared with: the bare mechanism of each transport.

A floor has the three operations that the benchmark uses: put, receive, ack. It gives the guarantees of a transport: a
record is kept until it is acked and could be delivered again, its lease is checked, its size is counted. It has nothing
else: one writer, one partition, no restarts, no dead letters, no peeking.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self, TypeAlias, cast
from zlib import crc32

from transports import Delivery, Frames, Queue

_ENTRY = struct.Struct("<QIQId1s")
_ACK = struct.Struct("<BQQ")
_CHECKSUM_BYTES = 4
_LOG_NAMES = ("index", "acks")
_SEGMENT_BYTES = 64 << 20
_ACK_SCAN_INTERVAL = 0.25
_SYNC_INTERVAL = 0.05
_MAX_UNACKED_RECORDS = 64
_MAX_UNACKED_BYTES = 64 << 20
_READ_AHEAD_BYTES = 1 << 20
_Stored: TypeAlias = tuple[int, tuple[bytes, ...], str, str, int, float]


class Floor(ABC):
    """One side of a bare queue, created in the process that uses it."""

    def __init__(self, where: str) -> None:
        self._where = where

    @abstractmethod
    async def put(self, frames: Frames, *, key: str) -> None:
        """Put a record."""

    @abstractmethod
    async def receive(self, *, timeout: float) -> Delivery | None:
        """Receive a record, and lease it."""

    @abstractmethod
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Remove leased records."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: B027 - optional on purpose
        """Wait for what is in flight, and close the connection."""

    def _delivery(self, frames: Frames, key: str, number: int) -> Delivery:
        return Delivery(frames, key, "", 0, "0", number, False, 1, cast(Queue, self))


class MemoryFloor(Floor):
    """An `asyncio.Queue` with the bookkeeping of a shared, leased, bounded queue.

    That is a lock, sizes and a limit, a partition by key, copies of the bytes, a timeout, and the epoch of each leased
    record.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._queue: asyncio.Queue[_Stored] = asyncio.Queue()
        self._leased: dict[int, tuple[int, _Stored]] = {}
        self._lock = threading.Lock()
        self._number = self._backlog_bytes = self._backlog_records = 0

    async def put(self, frames: Frames, *, key: str) -> None:
        """See `Floor.put`."""
        nbytes = sum([memoryview(frame).nbytes for frame in frames])
        owned = tuple([bytes(frame) for frame in frames])
        with self._lock:
            assert self._backlog_bytes + nbytes < 1 << 40
            assert crc32(key.encode()) % 1 == 0
            self._backlog_bytes += nbytes
            self._backlog_records += 1
            self._queue.put_nowait((self._number, owned, key, "", nbytes, time.monotonic()))
            self._number += 1

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Floor.receive`."""
        try:
            record = self._queue.get_nowait()
        except asyncio.QueueEmpty:
            async with asyncio.timeout(timeout):
                record = await self._queue.get()
        number, frames, key, _, _, _ = record
        with self._lock:
            self._leased[number] = (1, record)
        return self._delivery(frames, key, number)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Floor.ack`."""
        with self._lock:
            for delivery in deliveries:
                epoch, record = self._leased.pop(delivery.position)
                assert epoch == delivery.epoch
                self._backlog_bytes -= record[4]
                self._backlog_records -= 1


class FileFloor(Floor):
    """Segment files, an index of the records, a checksum over both, and a log of deliveries and acks.

    A delivery is logged before it is returned, and every ack checks the lease. A segment is deleted when all its acks
    are synced, so that the disk does not fill. The producer reads the acks four times a second to know the backlog. A
    thread syncs the files of the producer every 50 ms.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._index, self._acks = (os.open(f"{where}/{name}", os.O_RDWR | os.O_CREAT, 0o644) for name in _LOG_NAMES)
        self._segment, self._data = -1, -1
        self._number = 0
        self._end = _SEGMENT_BYTES
        self._leased: dict[int, tuple[int, int, int]] = {}
        self._oldest = 0
        self._closed = threading.Event()
        self._backlog_bytes = self._acks_read = 0
        self._acks_scanned_at = time.monotonic()

    async def put(self, frames: Frames, *, key: str) -> None:
        """See `Floor.put`."""
        if not self._number:
            threading.Thread(target=self._keep_syncing, daemon=True).start()
        nbytes = sum([memoryview(frame).nbytes for frame in frames])
        if time.monotonic() - self._acks_scanned_at > _ACK_SCAN_INTERVAL:
            self._scan_acks()
        self._backlog_bytes += nbytes
        assert self._backlog_bytes < 1 << 40
        if self._end >= _SEGMENT_BYTES:
            self._open(self._segment + 1)
            self._end = 0
        entry = _ENTRY.pack(self._number, self._segment, self._end, nbytes, time.time(), key.encode())
        checksum = crc32(entry)
        for frame in frames:
            checksum = crc32(frame, checksum)
        os.writev(self._data, frames)
        os.write(self._index, entry + checksum.to_bytes(_CHECKSUM_BYTES, "little"))
        self._number += 1
        self._end += nbytes

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Floor.receive`."""
        deadline = time.monotonic() + timeout
        size = _ENTRY.size + _CHECKSUM_BYTES
        while len(entry := os.pread(self._index, size, self._number * size)) < size:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        number, segment, offset, nbytes, _, key = _ENTRY.unpack_from(entry)
        if segment != self._segment:
            self._open(segment)
        frame = os.pread(self._data, nbytes, offset)
        checksum = int.from_bytes(entry[_ENTRY.size :], "little")
        assert (number, crc32(frame, crc32(entry[: _ENTRY.size]))) == (self._number, checksum)
        self._append_fact(2, number, 0)
        self._leased[number] = (1, nbytes, segment)
        self._number += 1
        return self._delivery((frame,), key.decode(), number)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Floor.ack`."""
        for delivery in deliveries:
            epoch, nbytes, segment = self._leased.pop(delivery.position)
            assert epoch == delivery.epoch
            self._append_fact(1, delivery.position, nbytes)
        os.stat(f"{self._where}/acks")
        if segment > self._oldest and not any(leased[2] < segment for leased in self._leased.values()):
            await asyncio.to_thread(self._reclaim, segment)

    async def __aexit__(self, *_: object) -> None:
        self._closed.set()

    def _keep_syncing(self) -> None:
        while not self._closed.wait(_SYNC_INTERVAL):
            for fd in (self._index, self._data):
                with suppress(OSError):  # the segment may just have been closed
                    os.fsync(fd)

    def _append_fact(self, fact: int, number: int, nbytes: int) -> None:
        entry = _ACK.pack(fact, number, nbytes)
        os.write(self._acks, entry + crc32(entry).to_bytes(_CHECKSUM_BYTES, "little"))

    def _open(self, segment: int) -> None:
        if self._data >= 0:
            os.close(self._data)
        self._segment, self._data = segment, os.open(f"{self._where}/data.{segment}", os.O_RDWR | os.O_CREAT, 0o644)

    def _reclaim(self, before: int) -> None:
        os.fsync(self._acks)
        for segment in range(self._oldest, before):
            os.unlink(f"{self._where}/data.{segment}")
        self._oldest = before

    def _scan_acks(self) -> None:
        size = _ACK.size + _CHECKSUM_BYTES
        new_bytes = os.pread(self._acks, os.fstat(self._acks).st_size - self._acks_read, self._acks_read)
        for at in range(0, len(new_bytes) - size + 1, size):
            fact, _, nbytes = _ACK.unpack_from(new_bytes, at)
            checksum = new_bytes[at + _ACK.size : at + size]
            assert crc32(new_bytes[at : at + _ACK.size]) == int.from_bytes(checksum, "little")
            self._backlog_bytes -= nbytes if fact == 1 else 0
            self._acks_read += size
        self._acks_scanned_at = time.monotonic()


class ZmqFloor(Floor):
    """DEALER and ROUTER, with an ack for every record and at most 64 records or 64 MiB in flight.

    Both sides keep a record until it is acked.
    """

    def __init__(self, where: str) -> None:
        import zmq

        super().__init__(where)
        self._zmq = zmq
        self._socket: Any = None
        self._unacked: dict[bytes, tuple[bytes, ...]] = {}
        self._leased: dict[int, tuple[bytes, bytes, int, Frames]] = {}
        self._number = self._backlog_bytes = 0

    async def put(self, frames: Frames, *, key: str) -> None:
        """See `Floor.put`."""
        if self._socket is None:
            self._socket = self._zmq.Context.instance().socket(self._zmq.DEALER)
            self._socket.connect(self._where)
        nbytes = sum([memoryview(frame).nbytes for frame in frames])
        while self._is_full(nbytes) or self._socket.poll(0):
            self._receive_ack()
        name = self._number.to_bytes(8, "little")
        self._number += 1
        self._unacked[name] = tuple([bytes(frame) for frame in frames])
        self._backlog_bytes += nbytes
        self._socket.send_multipart([name, key.encode()], self._zmq.SNDMORE)
        self._socket.send_multipart(self._unacked[name], copy=False)

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Floor.receive`."""
        if self._socket is None:
            self._socket = self._zmq.Context.instance().socket(self._zmq.ROUTER)
            self._socket.bind(self._where)
        if not self._socket.poll(1000 * timeout):
            return None
        producer, name, key, *frames = self._socket.recv_multipart()
        number = int.from_bytes(name, "little")
        nbytes = sum([len(frame) for frame in frames])
        self._leased[number] = (producer, name, nbytes, tuple(frames))
        self._backlog_bytes += nbytes
        return self._delivery(tuple(frames), key.decode(), number)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Floor.ack`."""
        for delivery in deliveries:
            producer, name, nbytes, _ = self._leased.pop(delivery.position)
            self._backlog_bytes -= nbytes
            self._socket.send_multipart([producer, name])

    async def __aexit__(self, *_: object) -> None:
        while self._unacked:
            self._receive_ack()
        self._socket.close(linger=2000)
        self._zmq.Context.instance().term()

    def _is_full(self, nbytes: int) -> bool:
        over = self._backlog_bytes + nbytes > _MAX_UNACKED_BYTES
        return len(self._unacked) == _MAX_UNACKED_RECORDS or (over and bool(self._unacked))

    def _receive_ack(self) -> None:
        self._backlog_bytes -= sum([len(frame) for frame in self._unacked.pop(self._socket.recv())])


class RedisFloor(Floor):
    """XADD, XREADGROUP, XACK and XDEL; put and ack also count records and bytes, in the same pipeline."""

    def __init__(self, where: str) -> None:
        import redis.asyncio

        super().__init__(where)
        self._client: Any = redis.asyncio.Redis.from_url(where)
        self._group_created = False
        self._read_ahead: deque[tuple[bytes, dict[bytes, bytes]]] = deque()
        self._count = 1

    async def put(self, frames: Frames, *, key: str) -> None:
        """See `Floor.put`."""
        await self._create_group()
        data = b"".join(frames)
        async with self._client.pipeline() as pipeline:
            pipeline.xadd("floor", {"k": key, "d": data}).hincrby("totals", "records", 1)
            await pipeline.hincrby("totals", "bytes", len(data)).execute()

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Floor.receive`."""
        await self._create_group()
        if not self._read_ahead:
            found = await self._client.xreadgroup(
                "c", "me", {"floor": ">"}, count=self._count, block=round(1000 * timeout)
            )
            self._read_ahead.extend(found[0][1])
            self._count = max(1, _READ_AHEAD_BYTES // len(self._read_ahead[0][1][b"d"]))
        id_, fields = self._read_ahead.popleft()
        milliseconds, _, sequence = id_.partition(b"-")
        return self._delivery((fields[b"d"],), fields[b"k"].decode(), int(milliseconds) << 20 | int(sequence))

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Floor.ack`."""
        for delivery in deliveries:
            id_ = f"{delivery.position >> 20}-{delivery.position & 0xFFFFF}"
            async with self._client.pipeline() as pipeline:
                pipeline.xack("floor", "c", id_).xdel("floor", id_).hincrby("totals", "records", -1)
                await pipeline.hincrby("totals", "bytes", -delivery.nbytes).execute()

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def _create_group(self) -> None:
        import redis

        if not self._group_created:
            self._group_created = True
            try:
                await self._client.xgroup_create("floor", "c", "0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):  # the other side has created it
                    raise
