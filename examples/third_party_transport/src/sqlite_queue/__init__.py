"""`sqlite:///file.db`: a complete transport in one file, for one machine. docs/queues.md explains the contract.

Every operation is one transaction. This example is made for reading, not for speed.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from transports import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, QueueURLError
from transports.base import frames_nbytes, partition_of
from transports.urls import QueueOptions, parse_queue_url

LEASE_SECONDS = 30.0
POLL_SECONDS = 0.01

TABLES = """
CREATE TABLE IF NOT EXISTS queue (partitions INTEGER, redeliveries INTEGER, epochs INTEGER);
CREATE TABLE IF NOT EXISTS holders (epoch INTEGER PRIMARY KEY, alive_until REAL);
CREATE TABLE IF NOT EXISTS partitions (number INTEGER PRIMARY KEY, epoch INTEGER);
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER, key TEXT, tag TEXT, sizes TEXT, data BLOB,
    nbytes INTEGER, put_at REAL, due REAL DEFAULT 0, times INTEGER DEFAULT 0, epoch INTEGER, reason TEXT);
"""


class SqliteQueue(Queue):
    """A handle of a queue. Its epoch identifies it as the holder of its leases; deleting the epoch ends all of them."""

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        parts, options = parse_queue_url(url, QueueOptions)
        super().__init__(url, options)
        self._shares_partitions = lease == "record"
        self._epoch = 0
        self._database = sqlite3.connect(unquote(parts.path), isolation_level=None, timeout=30)
        self._database.executescript(f"PRAGMA journal_mode=WAL; {TABLES}")
        with self._transaction():
            if not self._query("SELECT * FROM queue"):
                self._execute("INSERT INTO queue VALUES (?, 0, 0)", options.partitions or 1)
            ((partitions,),) = self._query("SELECT partitions FROM queue")
        if options.partitions not in (None, partitions):
            self._database.close()
            raise QueueURLError(f"{self.url}: the queue was created with partitions={partitions}. Use this number.")
        self._partitions = int(partitions)
        self._requested_partitions = consume

    async def partition_count(self) -> int:
        """See `Queue.partition_count`."""
        return self._partitions

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """See `Queue.put`."""
        nbytes = self._check_record_size(frames)
        with self._transaction():
            records, backlog = self._backlog()
            if backlog + nbytes > self._hard_limit:
                raise self._queue_full_error(nbytes, records, backlog)
            self._execute(
                "INSERT INTO records (number, key, tag, sizes, data, nbytes, put_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(partition_of(key, self._partitions), key, tag),
                *(json.dumps([frames_nbytes((frame,)) for frame in frames]), b"".join(frames), nbytes, time.time()),
            )

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Queue.receive`."""
        deadline = time.monotonic() + timeout
        while (delivery := self._lease_next_record()) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - others put
            await asyncio.sleep(POLL_SECONDS)
        return delivery

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Queue.ack`."""
        with self._transaction():
            stale = [delivery for delivery in deliveries if not self._holds(delivery)]
            for delivery in deliveries:
                if delivery not in stale:
                    self._execute(
                        "DELETE FROM records WHERE position = ? AND epoch = ?", delivery.position, delivery.epoch
                    )
        if stale:
            raise self._stale_lease_error(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See `Queue.nack`."""
        self._settle(delivery, "UPDATE records SET epoch = NULL, due = ? WHERE position = ?", time.time() + delay)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See `Queue.reject`."""
        self._settle(delivery, "UPDATE records SET epoch = NULL, reason = ? WHERE position = ?", reason)

    async def release(self) -> None:
        """See `Queue.release`."""
        self._check_open()
        self._end_leases()

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        with self._transaction():
            records, nbytes = self._backlog()
            ((oldest,),) = self._query("SELECT min(put_at) FROM records WHERE reason IS NULL")
            ((dead,),) = self._query("SELECT count(*) FROM records WHERE reason IS NOT NULL")
            ((redeliveries,),) = self._query("SELECT redeliveries FROM queue")
        return QueueStats(records, nbytes, time.time() - oldest if records else 0.0, redeliveries, dead)

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Queue.dead_letters`."""
        with self._transaction():
            rows = self._query("SELECT * FROM records WHERE reason IS NOT NULL ORDER BY position LIMIT ?", limit)
        return [DeadLetter(str(row["position"]), _frames(row), row["key"], row["tag"], row["reason"]) for row in rows]

    async def discard(self, letter: DeadLetter) -> None:
        """See `Queue.discard`."""
        with self._transaction():
            self._execute("DELETE FROM records WHERE position = ? AND reason IS NOT NULL", int(letter.id))

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """See `Queue.peek`."""
        with self._transaction():
            rows = self._query("SELECT * FROM records WHERE reason IS NULL ORDER BY position LIMIT ?", limit)
        return [
            Peeked(_frames(row), row["key"], row["tag"], row["number"], row["position"], row["times"] > 0)
            for row in rows
        ]

    async def _close(self) -> None:
        self._end_leases()
        self._database.close()

    def _end_leases(self) -> None:
        self._execute("DELETE FROM holders WHERE epoch = ?", self._epoch)
        self._epoch = 0

    def _lease_next_record(self) -> Delivery | None:
        with self._transaction():
            self._renew_lease()
            for number in self._resolve_partitions(self._requested_partitions, self._partitions):
                if self._shares_partitions or self._lease(number):
                    rows = self._query(
                        "SELECT * FROM records WHERE number = ? AND reason IS NULL AND due <= ? AND "
                        "(epoch IS NULL OR epoch NOT IN (SELECT epoch FROM holders)) ORDER BY position LIMIT 1",
                        *(number, time.time()),
                    )
                    if rows:
                        return self._deliver(rows[0])
        return None

    def _renew_lease(self) -> None:
        """Renew the lease. This example does so at each `receive`; a real transport uses a thread."""
        now = time.time()
        self._execute("DELETE FROM holders WHERE alive_until < ?", now)
        if not self._query("SELECT * FROM holders WHERE epoch = ?", self._epoch):
            self._execute("UPDATE queue SET epochs = epochs + 1")
            ((self._epoch,),) = self._query("SELECT epochs FROM queue")
        self._execute("INSERT OR REPLACE INTO holders VALUES (?, ?)", self._epoch, now + LEASE_SECONDS)

    def _lease(self, number: int) -> bool:
        held = self._query(
            "SELECT epoch FROM partitions WHERE number = ? AND epoch IN (SELECT epoch FROM holders)", number
        )
        if not held:
            self._execute("INSERT OR REPLACE INTO partitions VALUES (?, ?)", number, self._epoch)
        return not held or held[0]["epoch"] == self._epoch

    def _deliver(self, row: sqlite3.Row) -> Delivery:
        self._execute(
            "UPDATE records SET epoch = ?, times = times + 1 WHERE position = ?", self._epoch, row["position"]
        )
        if row["times"]:
            self._execute("UPDATE queue SET redeliveries = redeliveries + 1")
        return Delivery(
            frames=_frames(row),
            key=row["key"],
            tag=row["tag"],
            partition=row["number"],
            lane=str(row["number"]),
            position=row["position"],
            redelivered=row["times"] > 0,
            epoch=self._epoch,
            queue=self,
        )

    def _settle(self, delivery: Delivery, statement: str, value: object) -> None:
        with self._transaction():
            leased = self._query(
                "SELECT * FROM records WHERE position = ? AND epoch = ?", delivery.position, delivery.epoch
            )
            if not leased or not self._holds(delivery):
                raise self._stale_lease_error([delivery])
            self._execute(statement, value, delivery.position)

    def _holds(self, delivery: Delivery) -> bool:
        return delivery.queue is self and bool(self._query("SELECT * FROM holders WHERE epoch = ?", delivery.epoch))

    def _backlog(self) -> tuple[int, int]:
        ((records, nbytes),) = self._query("SELECT count(*), total(nbytes) FROM records WHERE reason IS NULL")
        return records, int(nbytes)

    def _query(self, statement: str, *values: Any) -> list[Any]:
        cursor = self._database.execute(statement, values)
        cursor.row_factory = sqlite3.Row
        return cursor.fetchall()

    def _execute(self, statement: str, *values: Any) -> None:
        self._database.execute(statement, values)

    def _transaction(self) -> _Transaction:
        self._check_open()
        return _Transaction(self._database)


class _Transaction:
    """A transaction, which commits everything or nothing. Only one runs at a time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._database.execute("ROLLBACK" if kind else "COMMIT")


def _frames(row: sqlite3.Row) -> Frames:
    view, at, frames = memoryview(row["data"]), 0, []
    for size in json.loads(row["sizes"]):
        frames.append(view[at : at + size])
        at += size
    return tuple(frames)
