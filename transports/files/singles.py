"""A consumer that leases single records: any number of them share a partition, each record claimed by a file.

A record is settled when some log says so. A claim is removed after its record was settled; so who creates a claim reads
the logs once more before it believes that the record is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from transports.base import Delivery
from transports.files.layout import list_lanes
from transports.files.leases import Lease, LeaseState, lease_path, lease_states, take
from transports.files.ledger import AckLog, Entry, Fact
from transports.files.source import PartitionReader, Ref, SourceSettings, ack_entries, key_of

_RECLAIM_SECONDS = 1.0


class SingleRecordConsumer:
    """One partition, as one handle takes records from it."""

    def __init__(self, settings: SourceSettings, index: int) -> None:
        self._settings = settings
        self._filling = asyncio.Lock()
        self._reader = PartitionReader(settings, index)
        self._claims = settings.layout.claims(index)
        self._log: AckLog | None = None
        self._open: dict[tuple[str, int], Ref] = {}
        """Records that were read and are not known to be settled; whoever claimed them."""
        self._lent: dict[tuple[str, int], tuple[Lease, Ref]] = {}
        self._delayed: dict[tuple[str, int], tuple[asyncio.TimerHandle, Lease]] = {}
        self._redeliveries = 0
        self._reclaimed_at = time.monotonic()

    async def next(self) -> Delivery | None:
        async with self._filling:
            self._look()
            while (delivery := self._claim_one()) is None:
                found = await self._reader.read_on()
                if found is None:
                    break
                self._open.update((ref.key, ref) for ref, _ in self._reader.refs(*found))
            await self._reclaim()
            return delivery

    def settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        stale = [delivery for delivery in deliveries if not self._is_settled_or_mine(delivery)]
        mine = [self._lent[key_of(d)] for d in deliveries if d not in stale and key_of(d) in self._lent]
        entries = ack_entries([ref for _, ref in mine])
        self._own_log().append(entries)
        for entry, (lease, ref) in zip(entries, mine, strict=True):
            del self._lent[ref.key]
            # Whoever takes a claim over creates its own first and reads this log afterwards. So if there is none now,
            # it will find the entry there.
            if lease.holds():
                self._reader.ledger.apply(self._own_log().name, entry)
                self._open.pop(ref.key, None)
                lease.remove()
            else:
                stale.extend(delivery for delivery in deliveries if key_of(delivery) == ref.key)
        return stale

    def give_back(self, delivery: Delivery, delay: float) -> bool:
        if key_of(delivery) not in self._lent or not self._is_settled_or_mine(delivery):
            return False
        lease, ref = self._lent.pop(key_of(delivery))
        if delay <= 0:
            lease.release()
        else:
            # The claim is kept until then: nobody else needs to know of the delay, or to agree on the time.
            timer = asyncio.get_running_loop().call_later(delay, self._release_delayed, ref.key)
            self._delayed[ref.key] = (timer, lease)
        return True

    def reject(self, delivery: Delivery, reason: str) -> bool:
        if key_of(delivery) not in self._lent or not self._is_settled_or_mine(delivery):
            return False
        self._reader.bury(self._lent[key_of(delivery)][1], reason)
        return not self.settle([delivery])

    async def release(self) -> None:
        async with self._filling:
            for key in list(self._delayed):
                self._release_delayed(key)
            for lease, _ in self._lent.values():
                lease.release()
            self._lent.clear()

    def close(self) -> None:
        self._reader.close()
        if self._log is not None:
            self._log.close()

    def _look(self) -> None:
        lanes = list_lanes(self._reader.directory)
        self._reader.ledger.refresh(but=self._log.name if self._log is not None else "")
        self._reader.see(lanes)
        ledger = self._reader.ledger
        self._open = {key: ref for key, ref in self._open.items() if not ledger.lane(ref.writer).holds(ref.seq)}

    def _claim_one(self) -> Delivery | None:
        states = lease_states(self._claims) if self._open else {}
        for key, ref in list(self._open.items()):
            if key in self._lent or key in self._delayed:
                continue
            lease = self._claim(ref, states.get(_stem(ref)))
            if lease is None:
                continue
            self._reader.ledger.refresh(but=self._own_log().name)
            if self._reader.ledger.lane(ref.writer).holds(ref.seq):
                lease.remove()
                del self._open[key]
                continue
            self._lent[key] = (lease, ref)
            redelivered = lease.epoch > 0
            if redelivered:
                self._redeliveries += 1
                entry = Entry(Fact.REDELIVERED, "", self._redeliveries)
                self._own_log().append([entry])
            record = self._reader.read_again(ref)
            return self._reader.delivery(ref, record, epoch=lease.epoch, redelivered=redelivered)
        return None

    def _claim(self, ref: Ref, state: LeaseState | None) -> Lease | None:
        if state is None:
            return take(self._claims, _stem(ref), 0, self._settings.holder)
        if not state.is_free(lease_path(self._claims, _stem(ref), state.epoch), self._settings.watch):
            return None
        return take(self._claims, _stem(ref), state.epoch + 1, self._settings.holder)

    def _is_settled_or_mine(self, delivery: Delivery) -> bool:
        lent = self._lent.get(key_of(delivery))
        if lent is None:
            writer, seq = key_of(delivery)
            return self._reader.ledger.lane(writer).holds(seq)
        return lent[0].epoch == delivery.epoch and lent[0].holds()

    def _release_delayed(self, key: tuple[str, int]) -> None:
        timer, lease = self._delayed.pop(key)
        timer.cancel()
        lease.release()

    def _own_log(self) -> AckLog:
        if self._log is None:
            self._log = AckLog(self._reader.directory, epoch=0, holder=self._settings.holder.name, opening=[])
        return self._log

    async def _reclaim(self) -> None:
        if time.monotonic() - self._reclaimed_at < _RECLAIM_SECONDS:
            return
        self._reclaimed_at = time.monotonic()
        if segments := self._reader.settled_segments():
            await asyncio.to_thread(self._reader.remove, segments)


def _stem(ref: Ref) -> str:
    return f"{ref.writer}.{ref.seq}"
