"""A consumer that leases single records. Any number of consumers share a partition; each claims a record with a file.

A claim is removed after its record is acked. So a consumer that has created a claim reads the ack logs again, because
the record may be acked already. A receive does not take longer if many records are leased, because the claims of other
consumers are checked together, at intervals.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from transports.base import Delivery
from transports.files.acks import AckLog, EntryKind, LedgerEntry
from transports.files.directory import list_segments_by_writer
from transports.files.leases import FileLease, claim_record, lease_path, read_lease_states
from transports.files.partition_reader import ConsumerSettings, PartitionReader, RecordRef, ack_entries, writer_position

_RECLAIM_SECONDS = 1.0
_CLAIM_CHECK_SECONDS = 0.1


class SingleRecordConsumer:
    """Leases single records of one partition, for one handle."""

    def __init__(self, settings: ConsumerSettings, index: int) -> None:
        self._settings = settings
        self._receive_lock = asyncio.Lock()
        self._reader = PartitionReader(settings, index)
        self._claims_dir = settings.queue_dir.claims_dir(index)
        self._ack_log: AckLog | None = None
        self._unclaimed: deque[RecordRef] = deque()
        """Records that were read, and for which no claim is known."""
        self._claimable_again: deque[tuple[RecordRef, int]] = deque()
        """Records whose claim was released or has expired, each with the epoch for the next claim."""
        self._claimed_by_others: dict[tuple[str, int], RecordRef] = {}
        """Records that had the claim of another consumer at the last check, by writer and number."""
        self._unacked: dict[tuple[str, int], tuple[FileLease, RecordRef]] = {}
        self._delayed: dict[tuple[str, int], tuple[asyncio.TimerHandle, FileLease, RecordRef]] = {}
        self._redeliveries = 0
        self._segments_deleted_at = time.monotonic()
        self._claims_checked_at = -_CLAIM_CHECK_SECONDS

    def next_buffered(self) -> None:
        """Return None. This consumer has no buffer, because it claims a record only when a caller asks for one."""

    async def next_delivery(self) -> Delivery | None:
        """Lease and return the next record, or return None if there is none now."""
        async with self._receive_lock:
            if not self._unclaimed or time.monotonic() - self._claims_checked_at >= _CLAIM_CHECK_SECONDS:
                self._refresh_claims()
            while (delivery := self._claim_next()) is None:
                read = await self._reader.read_next()
                if read is None:
                    break
                self._unclaimed.extend(ref for ref, _ in self._reader.unacked_refs(*read))
            await self._delete_settled_segments()
            return delivery

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack deliveries. Return the deliveries whose lease has ended; they are not acked."""
        stale = [delivery for delivery in deliveries if not self._still_holds(delivery)]
        keys = {writer_position(delivery): None for delivery in deliveries if delivery not in stale}
        unacked = [self._unacked[key] for key in keys if key in self._unacked]
        entries = ack_entries([ref for _, ref in unacked])
        self._open_log().append(entries)
        for entry, (lease, ref) in zip(entries, unacked, strict=True):
            del self._unacked[ref.key]
            # The entry is written first, and then the lease is checked. A consumer that takes over this claim first
            # creates its own claim, and then reads this log. So if there is no such claim now, it will find the entry.
            if lease.is_current():
                self._reader.ledger.apply(self._open_log().name, entry)
                lease.remove()
            else:
                stale.extend(delivery for delivery in deliveries if writer_position(delivery) == ref.key)
        return stale

    def nack(self, delivery: Delivery, delay: float) -> bool:
        """Deliver the record again after `delay` seconds. Return False if its lease has ended."""
        if writer_position(delivery) not in self._unacked or not self._still_holds(delivery):
            return False
        lease, ref = self._unacked.pop(writer_position(delivery))
        if delay <= 0:
            self._release_claim(lease, ref)
        else:
            # This consumer keeps the claim during the delay, so other consumers need not know the delay.
            timer = asyncio.get_running_loop().call_later(delay, self._release_delayed, ref.key)
            self._delayed[ref.key] = (timer, lease, ref)
        return True

    def reject(self, delivery: Delivery, reason: str) -> bool:
        """Make the record a dead letter. Return False if its lease has ended."""
        if writer_position(delivery) not in self._unacked or not self._still_holds(delivery):
            return False
        self._reader.store_dead_letter(self._unacked[writer_position(delivery)][1], reason)
        return not self.ack([delivery])

    async def release(self) -> None:
        """Release the claims of all unacked records, so that other consumers can take them at once."""
        async with self._receive_lock:
            for key in list(self._delayed):
                self._release_delayed(key)
            for lease, ref in self._unacked.values():
                self._release_claim(lease, ref)
            self._unacked.clear()

    def close(self) -> None:
        """Close the ack log, and the writer of dead letters."""
        self._reader.close()
        if self._ack_log is not None:
            self._ack_log.close()

    def _refresh_claims(self) -> None:
        """Read the new writers and acks. At intervals, find claims of other consumers that are released or expired."""
        lanes = list_segments_by_writer(self._reader.directory)
        self._reader.ledger.refresh(except_log=self._ack_log.name if self._ack_log is not None else "")
        self._reader.update_segments(lanes)
        if time.monotonic() - self._claims_checked_at < _CLAIM_CHECK_SECONDS:
            return
        self._claims_checked_at = time.monotonic()
        states = read_lease_states(self._claims_dir) if self._claimed_by_others else {}
        for key, ref in list(self._claimed_by_others.items()):
            state = states.get(_claim_name(ref))
            if self._is_acked(ref):
                del self._claimed_by_others[key]
            elif state is None or state.is_free(
                lease_path(self._claims_dir, _claim_name(ref), state.epoch), self._settings.heartbeats
            ):
                self._claimable_again.append((ref, 0 if state is None else state.epoch + 1))
                del self._claimed_by_others[key]

    def _claim_next(self) -> Delivery | None:
        while self._claimable_again or self._unclaimed:
            ref, epoch = self._claimable_again.popleft() if self._claimable_again else (self._unclaimed.popleft(), 0)
            if self._is_acked(ref):
                continue
            try:
                delivery = self._claim(ref, epoch)
            except BaseException:
                self._claimed_by_others[ref.key] = ref  # so that a later check tries it again
                raise
            if delivery is not None:
                return delivery
        return None

    def _claim(self, ref: RecordRef, epoch: int) -> Delivery | None:
        """Claim and return a record. Return None if another consumer has claimed or acked it."""
        lease = claim_record(self._claims_dir, _claim_name(ref), epoch, self._settings.holder)
        if lease is None:
            self._claimed_by_others[ref.key] = ref
            return None
        try:
            self._reader.ledger.refresh(except_log=self._open_log().name)
            if self._is_acked(ref):
                lease.remove()
                return None
            redelivered = lease.epoch > 0
            if redelivered:
                self._redeliveries += 1
                self._open_log().append([LedgerEntry(EntryKind.REDELIVERIES, "", self._redeliveries)])
            record = self._reader.reread(ref)
        except BaseException:
            lease.release()
            raise
        self._unacked[ref.key] = (lease, ref)
        return self._reader.make_delivery(ref, record, epoch=lease.epoch, redelivered=redelivered)

    def _is_acked(self, ref: RecordRef) -> bool:
        return self._reader.ledger.lane(ref.writer).is_acked(ref.seq)

    def _still_holds(self, delivery: Delivery) -> bool:
        unacked = self._unacked.get(writer_position(delivery))
        if unacked is None:
            writer, seq = writer_position(delivery)
            return self._reader.ledger.lane(writer).is_acked(seq)
        return unacked[0].epoch == delivery.epoch and unacked[0].is_current()

    def _release_delayed(self, key: tuple[str, int]) -> None:
        timer, lease, ref = self._delayed.pop(key)
        timer.cancel()
        self._release_claim(lease, ref)

    def _release_claim(self, lease: FileLease, ref: RecordRef) -> None:
        """Release a claim. Any consumer may claim the record at its next check."""
        lease.release()
        self._claimed_by_others[ref.key] = ref
        self._claims_checked_at = -_CLAIM_CHECK_SECONDS

    def _open_log(self) -> AckLog:
        if self._ack_log is None:
            self._ack_log = AckLog(
                self._reader.directory, epoch=0, holder=self._settings.holder.name, initial_entries=[]
            )
        return self._ack_log

    async def _delete_settled_segments(self) -> None:
        if time.monotonic() - self._segments_deleted_at < _RECLAIM_SECONDS:
            return
        self._segments_deleted_at = time.monotonic()
        if segments := self._reader.settled_segments():
            await asyncio.to_thread(self._reader.remove_segments, segments)


def _claim_name(ref: RecordRef) -> str:
    return f"{ref.writer}.{ref.seq}"
