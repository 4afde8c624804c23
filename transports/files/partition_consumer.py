"""A consumer that leases a whole partition. Until its lease ends, no other consumer reads the lanes or writes acks."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Sequence

from transports.base import Delivery
from transports.files.acks import AckLog, EntryKind, LedgerEntry
from transports.files.directory import list_segments_by_writer
from transports.files.leases import FileLease, lease_path, read_lease_states, take_lease
from transports.files.partition_reader import ConsumerSettings, PartitionReader, RecordRef, ack_entries, writer_position
from transports.files.records import StoredRecord

_LEASE_NAME = "lease"
_WRITER_CHECK_SECONDS = 0.01
"""While the known writers have records, look for new writers at this interval, in seconds."""


class PartitionConsumer:
    """Consumes one partition for one handle. While it has no lease, each call for a record tries to get the lease."""

    def __init__(self, settings: ConsumerSettings, index: int) -> None:
        self._settings = settings
        self._index = index
        self._fill_lock = asyncio.Lock()
        self._leased: _LeasedPartition | None = None

    def next_buffered(self) -> Delivery | None:
        """Return the next record in the buffer. Return None if the buffer is empty, or if a nacked record waits."""
        return None if self._leased is None or self._leased.delayed else self._leased.pop_delivery()

    async def next_delivery(self) -> Delivery | None:
        """Return the next record, or None if there is none now or another consumer has the lease."""
        if self._leased is not None and (delivery := self._leased.pop_delivery()) is not None:
            return delivery
        async with self._fill_lock:
            if self._leased is None:
                self._leased = self._try_lease()
            if self._leased is None:
                return None
            if not self._leased.lease.exists():
                self._drop_lease()
                return None
            leased = self._leased
            await leased.read_ahead()
            # During the read, a refused ack may have shown that the lease has ended.
            return leased.pop_delivery() if self._leased is leased else None

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack deliveries. Return the deliveries whose lease has ended; they are not acked."""
        leased = self._leased
        if leased is None:
            return list(deliveries)
        epoch = leased.lease.epoch
        current = [delivery for delivery in deliveries if delivery.epoch == epoch]
        if current and not leased.ack(current):
            self._drop_lease()
            current = []
        if len(current) == len(deliveries):
            return []
        acked = set(current)
        return [delivery for delivery in deliveries if delivery not in acked]

    def nack(self, delivery: Delivery, delay: float) -> bool:
        """Deliver the record again after `delay` seconds. Return False if its lease has ended."""
        leased = self._find_unacked(delivery)
        if leased is None:
            return False
        ref = leased.unacked.pop(writer_position(delivery))
        heapq.heappush(leased.delayed, (time.monotonic() + delay, ref.key, ref))
        return True

    def reject(self, delivery: Delivery, reason: str) -> bool:
        """Make the record a dead letter. Return False if its lease has ended."""
        leased = self._find_unacked(delivery)
        if leased is None:
            return False
        leased.reader.store_dead_letter(leased.unacked[writer_position(delivery)], reason)
        return not self.ack([delivery])

    async def release(self) -> None:
        """Remove the segments that are acked, and release the partition."""
        async with self._fill_lock:
            if self._leased is not None:
                leased, self._leased = self._leased, None
                await leased.reclaim_settled()
                leased.release()

    def close(self) -> None:
        """Do nothing, because `release` has closed all files."""

    def _find_unacked(self, delivery: Delivery) -> _LeasedPartition | None:
        """Return the leased partition if the delivery is unacked and its lease is current, and None otherwise."""
        leased = self._leased
        if leased is None or delivery.epoch != leased.lease.epoch or writer_position(delivery) not in leased.unacked:
            return None
        if not leased.lease.exists():
            self._drop_lease()
            return None
        return leased

    def _drop_lease(self) -> None:
        assert self._leased is not None
        self._leased.close()
        self._leased = None

    def _try_lease(self) -> _LeasedPartition | None:
        directory = self._settings.queue_dir.partition_dir(self._index)
        state = read_lease_states(directory).get(_LEASE_NAME)
        if state is not None and not state.is_free(
            lease_path(directory, _LEASE_NAME, state.epoch), self._settings.heartbeats
        ):
            return None
        lease = take_lease(directory, _LEASE_NAME, state.epoch + 1 if state is not None else 0, self._settings.holder)
        if lease is None:
            return None
        try:
            return _LeasedPartition(self._settings, self._index, lease)
        except BaseException:
            lease.release()  # without this, the heartbeat of this process would keep the lease
            raise


class _LeasedPartition:
    """The state of a consumer while it has the lease of its partition."""

    def __init__(self, settings: ConsumerSettings, index: int, lease: FileLease) -> None:
        self.lease = lease
        self.reader = PartitionReader(settings, index)
        self.unacked: dict[tuple[str, int], RecordRef] = {}
        self.delayed: list[tuple[float, tuple[str, int], RecordRef]] = []
        self._ready: deque[tuple[RecordRef, Delivery]] = deque()
        self._next_check_at = -math.inf
        self._reclaim_task: asyncio.Future[None] | None = None
        lanes = list_segments_by_writer(self.reader.directory)
        ledger = self.reader.ledger
        old_logs = ledger.log_names()
        ledger.refresh()
        self._redeliveries = ledger.redeliveries
        self._previously_delivered_below = {writer: acks.delivered_below for writer, acks in ledger.lanes.items()}
        self._log = AckLog(
            self.reader.directory,
            epoch=lease.epoch,
            holder=settings.holder.name,
            initial_entries=ledger.snapshot([segments[0].writer for segments in lanes], self._redeliveries),
        )
        for name in old_logs:
            (self.reader.directory / name).unlink(missing_ok=True)

    async def read_ahead(self) -> None:
        """Read more records into the buffer. At intervals, look for new writers and remove acked segments."""
        read = await self.reader.read_next() if time.monotonic() < self._next_check_at else None
        if read is None:
            self._next_check_at = time.monotonic() + _WRITER_CHECK_SECONDS
            self.reader.update_segments(list_segments_by_writer(self.reader.directory))
            self._start_reclaiming()
            read = await self.reader.read_next()
        if read is not None and not self._log.closed:
            writer, chunk = read
            acks = self.reader.ledger.lane(writer)
            if chunk.cursor.seq > acks.delivered_below:
                # Write this before these records are delivered, so that the next holder marks them as redelivered.
                self._append_entry(LedgerEntry(EntryKind.DELIVERED_BELOW, writer, chunk.cursor.seq))
            delivered_below = self._previously_delivered_below.get(writer, 0)
            for ref, record in self.reader.unacked_refs(writer, chunk):
                self._ready.append((ref, self._make_delivery(ref, record, redelivered=ref.seq < delivered_below)))

    async def reclaim_settled(self) -> None:
        """Remove all segments whose records are acked."""
        if self._reclaim_task is not None:
            await asyncio.wait([self._reclaim_task])
        self._start_reclaiming()
        if self._reclaim_task is not None:
            await self._reclaim_task

    def _start_reclaiming(self) -> None:
        """Start a thread that removes acked segments; it first syncs the acks, which may take long.

        If the ack log has become long, replace it with a shorter one.
        """
        if self._reclaim_task is not None and self._reclaim_task.done():
            finished_task, self._reclaim_task = self._reclaim_task, None
            finished_task.result()
        if self._reclaim_task is None and (segments := self.reader.settled_segments()):
            self._reclaim_task = asyncio.get_running_loop().run_in_executor(None, self.reader.remove_segments, segments)
        if self._log.needs_compaction and not self._log.closed:
            self._log = self._log.compacted(
                self.reader.ledger.snapshot(list(self.reader.ledger.lanes), self._redeliveries)
            )

    def pop_delivery(self) -> Delivery | None:
        if self.delayed and self.delayed[0][0] <= time.monotonic():
            ref = heapq.heappop(self.delayed)[2]
            delivery = self._make_delivery(ref, self.reader.reread(ref), redelivered=True)
        elif self._ready:
            ref, delivery = self._ready.popleft()
        else:
            return None
        self.unacked[ref.key] = ref
        if delivery.redelivered:
            self._redeliveries += 1
            self._append_entry(LedgerEntry(EntryKind.REDELIVERIES, "", self._redeliveries))
        return delivery

    def ack(self, deliveries: list[Delivery]) -> bool:
        """Write the acks. Return False, and ack nothing, if another consumer has taken the lease."""
        refs = {}
        for delivery in deliveries:
            if (ref := self.unacked.get(writer_position(delivery))) is not None:
                refs[ref.key] = ref
        self._log.append(ack_entries(refs.values()))
        # The next holder first removes this lease, and then reads this log. So if the lease exists now, after the
        # write, the next holder reads these entries.
        if not self.lease.exists():
            return False
        for key, ref in refs.items():
            writer, seq = key
            self.reader.ledger.lane(writer).mark_acked(seq, ref.nbytes)
            del self.unacked[key]
        return True

    def release(self) -> None:
        """Write which records were delivered, and release the lease, so that another consumer can take it at once."""
        first_undelivered: dict[str, int] = {}
        for ref, _ in self._ready:
            first_undelivered.setdefault(ref.writer, ref.seq)
        for writer, seq in first_undelivered.items():
            delivered_below = max(seq, self._previously_delivered_below.get(writer, 0))
            if delivered_below < self.reader.ledger.lane(writer).delivered_below:
                self._append_entry(LedgerEntry(EntryKind.DELIVERED_BELOW, writer, delivered_below))
        self.close()
        self.lease.release()

    def close(self) -> None:
        if self._reclaim_task is not None:
            self._reclaim_task.cancel()
        self.reader.close()
        self._log.close()

    def _make_delivery(self, ref: RecordRef, record: StoredRecord, *, redelivered: bool) -> Delivery:
        return self.reader.make_delivery(ref, record, epoch=self.lease.epoch, redelivered=redelivered)

    def _append_entry(self, entry: LedgerEntry) -> None:
        self._log.append([entry])
        self.reader.ledger.apply(self._log.name, entry)
