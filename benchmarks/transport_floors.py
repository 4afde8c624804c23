"""What each transport is measured against: the bare means with the same guarantees and nothing around them.

Every floor is a pair of coroutines, `produce` and `consume`, that move `count` records of `nbytes` and ack each;
`consume` returns records per second from its first record to its last ack.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, cast
from zlib import crc32

from transports import Delivery, Frames, Queue

_INDEX = struct.Struct("<QQII")
_WINDOW = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: where the queue lives, and what is moved through it."""

    where: str
    nbytes: int
    count: int

    def payload(self) -> bytes:
        return os.urandom(self.nbytes)


class Rate:
    """Records per second from the first record to the last ack."""

    def __init__(self) -> None:
        self._started = 0.0
        self._records = -1

    def ack(self) -> None:
        self._records += 1
        if self._records == 0:
            self._started = time.perf_counter()

    def value(self) -> float:
        return self._records / (time.perf_counter() - self._started)


class MemoryFloor:
    """An asyncio.Queue with the bookkeeping of a shared, leased, bounded queue: a lock, sizes and a limit, a partition
    by key, a record that owns its bytes, what is lent under which epoch, a delivery."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, tuple[bytes, ...], str, str, int, float]] = asyncio.Queue()
        self._lent: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._backlog_bytes = self._backlog_records = self._redeliveries = 0

    async def produce(self, trial: Trial) -> None:
        payload = memoryview(trial.payload())
        for number in range(trial.count):
            await self._put(number, (payload,), "k")
            if number % 16 == 0:
                await asyncio.sleep(0)

    async def consume(self, trial: Trial) -> float:
        rate = Rate()
        for _ in range(trial.count):
            delivery = await self._receive()
            assert delivery.nbytes == trial.nbytes
            await self._ack([delivery])
            rate.ack()
        return rate.value()

    async def _put(self, number: int, frames: Frames, key: str) -> None:
        nbytes = sum([memoryview(frame).nbytes for frame in frames])
        owned = tuple([bytes(frame) for frame in frames])
        with self._lock:
            assert self._backlog_bytes + nbytes < 1 << 40
            assert crc32(key.encode()) % 1 == 0
            self._backlog_bytes += nbytes
            self._backlog_records += 1
            self._queue.put_nowait((number, owned, key, "", nbytes, time.monotonic()))

    async def _receive(self) -> Delivery:
        number, frames, key, tag, nbytes, _ = await self._queue.get()
        with self._lock:
            self._lent[number] = (1, nbytes)
        return Delivery(frames, key, tag, 0, "0", number, False, 1, cast(Queue, self))

    async def _ack(self, deliveries: list[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                epoch, nbytes = self._lent.pop(delivery.position)
                assert epoch == delivery.epoch
                self._backlog_bytes -= nbytes
                self._backlog_records -= 1


class FileFloor:
    """One file appended to, a checksum per record, an index to find it by, a file of acks, a look at the lease."""

    async def produce(self, trial: Trial) -> None:
        payload = trial.payload()
        data = os.open(f"{trial.where}/data", os.O_WRONLY | os.O_CREAT, 0o644)
        index = os.open(f"{trial.where}/index", os.O_WRONLY | os.O_CREAT, 0o644)
        end = 0
        for number in range(trial.count):
            os.write(data, payload)
            os.write(index, _INDEX.pack(number, end, trial.nbytes, crc32(payload)))
            end += trial.nbytes

    async def consume(self, trial: Trial) -> float:
        rate = Rate()
        data = os.open(f"{trial.where}/data", os.O_RDONLY | os.O_CREAT, 0o644)
        index = os.open(f"{trial.where}/index", os.O_RDONLY | os.O_CREAT, 0o644)
        acks = os.open(f"{trial.where}/acks", os.O_WRONLY | os.O_CREAT, 0o644)
        lease = f"{trial.where}/acks"
        for expected in range(trial.count):
            while len(entry := os.pread(index, _INDEX.size, expected * _INDEX.size)) < _INDEX.size:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            number, offset, nbytes, checksum = _INDEX.unpack(entry)
            assert number == expected
            assert crc32(os.pread(data, nbytes, offset)) == checksum
            os.write(acks, _INDEX.pack(number, 0, nbytes, crc32(entry)))
            os.stat(lease)
            rate.ack()
        return rate.value()


class ZmqFloor:
    """DEALER and ROUTER, an ack for every record, at most 64 of them under way, each kept until it is acked."""

    async def produce(self, trial: Trial) -> None:
        import zmq

        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.connect(trial.where)
        payload = memoryview(trial.payload())
        kept: dict[bytes, bytes] = {}
        for number in range(trial.count):
            while len(kept) == _WINDOW or socket.poll(0):
                del kept[socket.recv()]
            name = number.to_bytes(8, "little")
            kept[name] = bytes(payload)
            socket.send(name, zmq.SNDMORE)
            socket.send(kept[name], copy=False)
        while kept:
            del kept[socket.recv()]

    async def consume(self, trial: Trial) -> float:
        import zmq

        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        socket.bind(trial.where)
        rate = Rate()
        for _ in range(trial.count):
            producer, number, payload = socket.recv_multipart()
            assert len(payload) == trial.nbytes
            socket.send_multipart([producer, number])
            rate.ack()
        value = rate.value()
        socket.close(linger=2000)
        zmq.Context.instance().term()
        return value


class RedisFloor:
    """xadd; xreadgroup; xack and xdel, each pipelined with the counting of records and bytes."""

    async def produce(self, trial: Trial) -> None:
        import redis.asyncio

        client: Any = redis.asyncio.Redis.from_url(trial.where)
        payload = trial.payload()
        await client.xgroup_create("floor", "c", "0", mkstream=True)
        for _ in range(trial.count):
            async with client.pipeline() as pipeline:
                pipeline.xadd("floor", {"d": payload}).hincrby("totals", "records", 1)
                await pipeline.hincrby("totals", "bytes", trial.nbytes).execute()

    async def consume(self, trial: Trial) -> float:
        import redis.asyncio

        client: Any = redis.asyncio.Redis.from_url(trial.where)
        while not await client.exists("floor"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        rate, left = Rate(), trial.count
        while left:
            found = await client.xreadgroup(
                "c", "me", {"floor": ">"}, count=max(1, (1 << 20) // trial.nbytes), block=1000
            )
            for record, fields in found[0][1] if found else ():
                assert len(fields[b"d"]) == trial.nbytes
                async with client.pipeline() as pipeline:
                    pipeline.xack("floor", "c", record).xdel("floor", record).hincrby("totals", "records", -1)
                    await pipeline.hincrby("totals", "bytes", -trial.nbytes).execute()
                rate.ack()
                left -= 1
        return rate.value()
