"""A consumer that leases a whole partition: it alone reads the lanes and writes the acks, until it is fenced."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Sequence

from transports.base import Delivery
from transports.files.acks import AckLog, Entry, Fact
from transports.files.directory import list_lanes
from transports.files.leases import Lease, lease_path, lease_states, take
from transports.files.partition_reader import PartitionReader, Ref, SourceSettings, ack_entries, key_of
from transports.files.records import Record

_STEM = "lease"
_LOOK_SECONDS = 0.01
"""While the writers that are known have more to read, how soon another one is noticed."""


class PartitionConsumer:
    """One partition, as one handle consumes it. Without a lease it has nothing, and tries to get one."""

    def __init__(self, settings: SourceSettings, index: int) -> None:
        self._settings = settings
        self._index = index
        self._filling = asyncio.Lock()
        self._held: _Held | None = None

    def at_hand(self) -> Delivery | None:
        """The next record, if it was read already and none that was given back may come before it."""
        return None if self._held is None or self._held.delayed else self._held.pop()

    async def next(self) -> Delivery | None:
        """The next record, read from the medium if need be; None if there is none now."""
        if self._held is not None and (delivery := self._held.pop()) is not None:
            return delivery
        async with self._filling:
            if self._held is None:
                self._held = self._acquire()
            if self._held is None:
                return None
            if not self._held.lease.stands():
                self._lose()
                return None
            held = self._held
            await held.fill()
            # An ack that was refused meanwhile has shown that the lease is gone.
            return held.pop() if self._held is held else None

    def settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack them; those that are stale come back."""
        held = self._held
        if held is None:
            return list(deliveries)
        epoch = held.lease.epoch
        mine = [delivery for delivery in deliveries if delivery.epoch == epoch]
        if mine and not held.ack(mine):
            self._lose()
            mine = []
        if len(mine) == len(deliveries):
            return []
        acked = set(mine)
        return [delivery for delivery in deliveries if delivery not in acked]

    def give_back(self, delivery: Delivery, delay: float) -> bool:
        """Deliver it again after the delay; False if it is stale."""
        held = self._check(delivery)
        if held is None:
            return False
        ref = held.lent.pop(key_of(delivery))
        heapq.heappush(held.delayed, (time.monotonic() + delay, ref.key, ref))
        return True

    def reject(self, delivery: Delivery, reason: str) -> bool:
        held = self._check(delivery)
        if held is None:
            return False
        held.reader.bury(held.lent[key_of(delivery)], reason)
        return not self.settle([delivery])

    async def release(self) -> None:
        async with self._filling:
            if self._held is not None:
                held, self._held = self._held, None
                await held.reclaim()
                held.give_up()

    def close(self) -> None:
        """Nothing is left to close once it was released."""

    def _check(self, delivery: Delivery) -> _Held | None:
        """What is held, if this delivery is still lent under it."""
        held = self._held
        if held is None or delivery.epoch != held.lease.epoch or key_of(delivery) not in held.lent:
            return None
        if not held.lease.stands():
            self._lose()
            return None
        return held

    def _lose(self) -> None:
        assert self._held is not None
        self._held.close()
        self._held = None

    def _acquire(self) -> _Held | None:
        directory = self._settings.layout.partition(self._index)
        state = lease_states(directory).get(_STEM)
        if state is not None and not state.is_free(lease_path(directory, _STEM, state.epoch), self._settings.watch):
            return None
        lease = take(directory, _STEM, state.epoch + 1 if state is not None else 0, self._settings.holder)
        return None if lease is None else _Held(self._settings, self._index, lease)


class _Held:
    """What a consumer has while it holds the lease; thrown away whole when it does not."""

    def __init__(self, settings: SourceSettings, index: int, lease: Lease) -> None:
        self.lease = lease
        self.reader = PartitionReader(settings, index)
        self.lent: dict[tuple[str, int], Ref] = {}
        self.delayed: list[tuple[float, tuple[str, int], Ref]] = []
        self._ready: deque[tuple[Ref, Delivery]] = deque()
        self._look_again_at = -math.inf
        self._removing: asyncio.Future[None] | None = None
        lanes = list_lanes(self.reader.directory)
        ledger = self.reader.ledger
        predecessors = ledger.logs()
        ledger.refresh()
        self._redeliveries = ledger.redeliveries
        self._lent_before = {writer: acks.lent for writer, acks in ledger.lanes.items()}
        self._log = AckLog(
            self.reader.directory,
            epoch=lease.epoch,
            holder=settings.holder.name,
            opening=ledger.snapshot([names[0].writer for names in lanes], self._redeliveries),
        )
        for name in predecessors:
            (self.reader.directory / name).unlink(missing_ok=True)

    async def fill(self) -> None:
        """Read on; now and then, see who else writes, and reclaim what is settled."""
        found = await self.reader.read_on() if time.monotonic() < self._look_again_at else None
        if found is None:
            self._look_again_at = time.monotonic() + _LOOK_SECONDS
            self.reader.see(list_lanes(self.reader.directory))
            self._begin_to_reclaim()
            found = await self.reader.read_on()
        if found is not None and not self._log.closed:
            writer, chunk = found
            acks = self.reader.ledger.lane(writer)
            if chunk.cursor.seq > acks.lent:
                # Said before the first of them is delivered: whoever takes over knows that they may have been.
                self._note(Entry(Fact.LENT, writer, chunk.cursor.seq))
            before = self._lent_before.get(writer, 0)
            for ref, record in self.reader.refs(writer, chunk):
                self._ready.append((ref, self._delivery(ref, record, redelivered=ref.seq < before)))

    async def reclaim(self) -> None:
        """Remove all that is settled by now."""
        if self._removing is not None:
            await asyncio.wait([self._removing])
        self._begin_to_reclaim()
        if self._removing is not None:
            await self._removing

    def _begin_to_reclaim(self) -> None:
        """In a thread that nobody waits for: before a segment goes, its acks are synced, which may take long."""
        if self._removing is not None and self._removing.done():
            removed, self._removing = self._removing, None
            removed.result()
        if self._removing is None and (segments := self.reader.settled_segments()):
            self._removing = asyncio.get_running_loop().run_in_executor(None, self.reader.remove, segments)
        if self._log.is_long and not self._log.closed:
            self._log = self._log.renewed(
                self.reader.ledger.snapshot(list(self.reader.ledger.lanes), self._redeliveries)
            )

    def pop(self) -> Delivery | None:
        if self.delayed and self.delayed[0][0] <= time.monotonic():
            ref = heapq.heappop(self.delayed)[2]
            delivery = self._delivery(ref, self.reader.read_again(ref), redelivered=True)
        elif self._ready:
            ref, delivery = self._ready.popleft()
        else:
            return None
        self.lent[ref.key] = ref
        if delivery.redelivered:
            self._redeliveries += 1
            self._note(Entry(Fact.REDELIVERED, "", self._redeliveries))
        return delivery

    def ack(self, deliveries: list[Delivery]) -> bool:
        """Record the acks; False, and nothing is acked, where the lease has been taken over."""
        refs = {}
        for delivery in deliveries:
            if (ref := self.lent.get(key_of(delivery))) is not None:
                refs[ref.key] = ref
        self._log.append(ack_entries(refs.values()))
        # A successor removes this lease before it reads this log. So if it is still there, these entries will be read.
        if not self.lease.stands():
            return False
        for key, ref in refs.items():
            writer, seq = key
            self.reader.ledger.lane(writer).ack(seq, ref.nbytes)
            del self.lent[key]
        return True

    def give_up(self) -> None:
        """Say what was really delivered, and let the next one in at once."""
        read_ahead: dict[str, int] = {}
        for ref, _ in self._ready:
            read_ahead.setdefault(ref.writer, ref.seq)
        for writer, first in read_ahead.items():
            exact = max(first, self._lent_before.get(writer, 0))
            if exact < self.reader.ledger.lane(writer).lent:
                self._note(Entry(Fact.LENT, writer, exact))
        self.close()
        self.lease.release()

    def close(self) -> None:
        if self._removing is not None:
            self._removing.cancel()
        self.reader.close()
        self._log.close()

    def _delivery(self, ref: Ref, record: Record, *, redelivered: bool) -> Delivery:
        return self.reader.delivery(ref, record, epoch=self.lease.epoch, redelivered=redelivered)

    def _note(self, entry: Entry) -> None:
        self._log.append([entry])
        self.reader.ledger.apply(self._log.name, entry)
