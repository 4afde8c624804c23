"""A consumer that leases single records: any number of them share a partition, each record claimed by a file.

A record is settled when some log says so. A claim is removed after its record was settled; so who creates a claim reads
the logs once more before it believes that the record is open. What a receive costs does not grow with the records that
are lent: those that others have are looked at together, now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from transports.base import Delivery
from transports.files.acks import AckLog, Entry, Fact
from transports.files.directory import list_lanes
from transports.files.leases import Lease, claim, lease_path, lease_states
from transports.files.partition_reader import PartitionReader, Ref, SourceSettings, ack_entries, key_of

_RECLAIM_SECONDS = 1.0
_LOOK_SECONDS = 0.1


class SingleRecordConsumer:
    """One partition, as one handle takes records from it."""

    def __init__(self, settings: SourceSettings, index: int) -> None:
        self._settings = settings
        self._filling = asyncio.Lock()
        self._reader = PartitionReader(settings, index)
        self._claims = settings.layout.claims(index)
        self._log: AckLog | None = None
        self._fresh: deque[Ref] = deque()
        """Records that were read, and that nobody is known to have."""
        self._free: deque[tuple[Ref, int]] = deque()
        """Records that somebody had and has no more, with the epoch of the next claim."""
        self._taken: dict[tuple[str, int], Ref] = {}
        """Records that somebody else has, as far as is known."""
        self._lent: dict[tuple[str, int], tuple[Lease, Ref]] = {}
        self._delayed: dict[tuple[str, int], tuple[asyncio.TimerHandle, Lease, Ref]] = {}
        self._redeliveries = 0
        self._reclaimed_at = time.monotonic()
        self._looked_at = -_LOOK_SECONDS

    def at_hand(self) -> None:
        """Nothing: a record is claimed when it is asked for."""

    async def next(self) -> Delivery | None:
        async with self._filling:
            if not self._fresh or time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                self._look()
            while (delivery := self._claim_one()) is None:
                found = await self._reader.read_on()
                if found is None:
                    break
                self._fresh.extend(ref for ref, _ in self._reader.refs(*found))
            await self._reclaim()
            return delivery

    def settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        stale = [delivery for delivery in deliveries if not self._is_settled_or_mine(delivery)]
        keys = {key_of(delivery): None for delivery in deliveries if delivery not in stale}
        mine = [self._lent[key] for key in keys if key in self._lent]
        entries = ack_entries([ref for _, ref in mine])
        self._own_log().append(entries)
        for entry, (lease, ref) in zip(entries, mine, strict=True):
            del self._lent[ref.key]
            # Whoever takes a claim over creates its own first and reads this log afterwards. So if there is none now,
            # it will find the entry there.
            if lease.holds():
                self._reader.ledger.apply(self._own_log().name, entry)
                lease.remove()
            else:
                stale.extend(delivery for delivery in deliveries if key_of(delivery) == ref.key)
        return stale

    def give_back(self, delivery: Delivery, delay: float) -> bool:
        if key_of(delivery) not in self._lent or not self._is_settled_or_mine(delivery):
            return False
        lease, ref = self._lent.pop(key_of(delivery))
        if delay <= 0:
            self._give_up(lease, ref)
        else:
            # The claim is kept until then: nobody else needs to know of the delay, or to agree on the time.
            timer = asyncio.get_running_loop().call_later(delay, self._release_delayed, ref.key)
            self._delayed[ref.key] = (timer, lease, ref)
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
            for lease, ref in self._lent.values():
                self._give_up(lease, ref)
            self._lent.clear()

    def close(self) -> None:
        self._reader.close()
        if self._log is not None:
            self._log.close()

    def _look(self) -> None:
        """See new writers and acks, and what others had and have no more."""
        lanes = list_lanes(self._reader.directory)
        self._reader.ledger.refresh(but=self._log.name if self._log is not None else "")
        self._reader.see(lanes)
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        states = lease_states(self._claims) if self._taken else {}
        for key, ref in list(self._taken.items()):
            state = states.get(_stem(ref))
            if self._is_settled(ref):
                del self._taken[key]
            elif state is None or state.is_free(
                lease_path(self._claims, _stem(ref), state.epoch), self._settings.watch
            ):
                self._free.append((ref, 0 if state is None else state.epoch + 1))
                del self._taken[key]

    def _claim_one(self) -> Delivery | None:
        while self._free or self._fresh:
            ref, epoch = self._free.popleft() if self._free else (self._fresh.popleft(), 0)
            if self._is_settled(ref):
                continue
            lease = claim(self._claims, _stem(ref), epoch, self._settings.holder)
            if lease is None:
                self._taken[ref.key] = ref
                continue
            self._reader.ledger.refresh(but=self._own_log().name)
            if self._is_settled(ref):
                lease.remove()
                continue
            self._lent[ref.key] = (lease, ref)
            redelivered = lease.epoch > 0
            if redelivered:
                self._redeliveries += 1
                entry = Entry(Fact.REDELIVERED, "", self._redeliveries)
                self._own_log().append([entry])
            record = self._reader.read_again(ref)
            return self._reader.delivery(ref, record, epoch=lease.epoch, redelivered=redelivered)
        return None

    def _is_settled(self, ref: Ref) -> bool:
        return self._reader.ledger.lane(ref.writer).holds(ref.seq)

    def _is_settled_or_mine(self, delivery: Delivery) -> bool:
        lent = self._lent.get(key_of(delivery))
        if lent is None:
            writer, seq = key_of(delivery)
            return self._reader.ledger.lane(writer).holds(seq)
        return lent[0].epoch == delivery.epoch and lent[0].holds()

    def _release_delayed(self, key: tuple[str, int]) -> None:
        timer, lease, ref = self._delayed.pop(key)
        timer.cancel()
        self._give_up(lease, ref)

    def _give_up(self, lease: Lease, ref: Ref) -> None:
        """Let anybody have the record, at the next look of each."""
        lease.release()
        self._taken[ref.key] = ref
        self._looked_at = -_LOOK_SECONDS

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
