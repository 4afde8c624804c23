"""The trainer's end of the queue: whole trajectories, each exactly once relative to the trainer's checkpoint.

    async with open_reader(url, rank=rank, world_size=world_size) as reader:
        reader.load_state_dict(checkpoint["reader"])        # drops what the loaded weights have trained on
        async for group in reader.groups():
            train(group)
            if time_to_save:
                save(weights, reader=reader.state_dict())    # atomically, in one file
                await reader.commit()                        # only now may the queue forget

Delivery is at least once and may be disordered by redelivery. Whatever was handed out counts as consumed by the next
`state_dict`; nothing is acked before a `commit`, and a commit acks exactly what that state contains. So a trainer that
dies at any point comes back to its last checkpoint and gets everything that the checkpoint's weights have not seen.
"""

import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rollout.records.wire import Header, RecordError, decode_record, header_of
from rollout.trainer.errors import ReaderStateError
from rollout.trainer.reading.acks import Settlement, key_of
from rollout.trainer.reading.consumed import Progress
from rollout.trainer.reading.groups import Group, GroupAssembler, GroupPolicy
from rollout.trainer.reading.image_access import ReadableImages
from rollout.trainer.reading.pending import Gathering, Key, PendingRollout
from rollout.trainer.reading.spill import StepStore
from rollout.trainer.reading.staleness import staleness
from rollout.trainer.reading.stats import ReaderCounters, ReaderStats
from rollout.trainer.trajectory import Trajectory
from transports import Delivery, Queue

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL = 0.5


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """How a reader treats what is late, large, incomplete or stale. Time-outs count the time it waits for records."""

    gap_timeout: float = 30.0
    """Seconds that a finished attempt may lack a record, which a redelivery may still bring."""
    unfinished_timeout: float = 7200.0
    """Seconds without a record after which an unfinished attempt is given up."""
    memory_limit: int = 1 << 30
    """Bytes that steps may take in memory, records and what they were decoded to; beyond it they go to the disk."""
    spill_directory: Path | None = None
    """Where they go; None: the system's place for temporary files."""
    groups: GroupPolicy = field(default_factory=GroupPolicy)
    max_staleness: int | None = None
    """How many versions a trajectory may lie behind the trainer's; a group with one beyond that is dropped."""
    require_images: bool = True
    """Check that images can be read before anything that refers to them is handed out."""


class TrajectoryReader:
    """Reads one queue for one trainer process: trajectories with `receive`, or whole groups with `receive_group`."""

    def __init__(self, queue: Queue, settings: ReaderSettings | None = None) -> None:
        self.settings = settings or ReaderSettings()
        self.version: int | None = None
        """The trainer's version of the policy; set it after each update, so that staleness is known."""
        self.queue = queue
        self._store = StepStore(self.settings.memory_limit, self.settings.spill_directory)
        self._gathering = Gathering(self._store, self.settings)
        self._groups: GroupAssembler[PendingRollout] = GroupAssembler()
        self._progress = Progress()
        self._settlement = Settlement(queue)
        self._images = ReadableImages()
        self._counters = ReaderCounters()
        self._done: deque[PendingRollout] = deque()
        self._whole_groups: deque[tuple[PendingRollout, ...]] = deque()
        self._waited = 0.0
        self._looked = 0.0
        self._impatient = False
        """Whether groups are to be looked through for those that have waited too long."""
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()
        await self.queue.aclose()

    @property
    def ended(self) -> bool:
        """Whether everything was handed out and nothing will ever come again."""
        return self._ended and not (self._done or self._whole_groups or self._groups.waiting)

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Until the queue ends, which only a replayed one does; leave the loop, or cancel it, to stop."""
        while not self.ended:
            if (trajectory := await self.receive(timeout=_POLL)) is not None:
                yield trajectory

    async def groups(self) -> AsyncIterator[Group]:
        """The same for groups."""
        while not self.ended:
            if (group := await self.receive_group(timeout=_POLL)) is not None:
                yield group

    async def receive(self, *, timeout: float) -> Trajectory | None:
        """The next finished trajectory, whatever its status, or None when none was finished in time.

        Raises:
            ImagesUnreadable: before the first trajectory whose images this process cannot read; nothing is consumed.
            SpillError: the disk is full.
        """
        return await self._until(self._next_trajectory, timeout)

    async def receive_group(self, *, timeout: float) -> Group | None:
        """The next group, whole unless the policy says otherwise, or None when there was none in time.

        A reader is used for trajectories or for groups, not for both. Raises what `receive` does.
        """
        return await self._until(self._next_group, timeout)

    def state_dict(self) -> dict[str, Any]:
        """What the trainer has been given so far; save it atomically with the weights that were trained on it.

        It is JSON-like and bounded. Its `number` names it to `commit`.
        """
        return {**self._progress.state(), "number": self._settlement.cover()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where a saved state ended. Raises ReaderStateError after records were read, or if it is not ours."""
        if self._counters.records:
            raise ReaderStateError("load_state_dict comes before the first receive.")
        self._progress.load(state)

    async def commit(self, number: int | None = None) -> None:
        """Ack what a state covers: that of this number, or the last one. Call it once that state is safely stored.

        Raises:
            LeaseLost: this process was silent for so long that another one may have taken over.
        """
        await self._settlement.commit(number)
        self._progress.forget(self._settlement.unacked)

    def stats(self) -> ReaderStats:
        """Where it stands; may be asked from any thread."""
        counted = self._counters
        return ReaderStats(
            trajectories=counted.trajectories,
            groups=counted.groups,
            records=counted.records,
            bytes=counted.bytes,
            dropped=counted.dropped,
            rejected=counted.rejected,
            stale=counted.stale,
            partial_groups=counted.partial_groups,
            unfinished=len(self._gathering.unfinished()),
            waiting=len(self._done) + self._groups.waiting + sum(map(len, list(self._whole_groups))),
            unacked=self._settlement.unacked,
            bytes_in_memory=self._store.in_memory,
            bytes_on_disk=self._store.on_disk,
            redelivered=counted.redelivered,
            staleness=dict(counted.staleness),
        )

    async def _until(self, find: Callable[[], T | None], timeout: float) -> T | None:
        deadline = time.monotonic() + timeout
        reading = True
        while (found := find()) is None and reading:
            reading = await self._read(deadline)
        return found

    async def _read(self, deadline: float) -> bool:
        """Take in a record, or let time pass; False once the deadline is over or the queue has ended."""
        began = time.monotonic()
        delivery = await self.queue.receive(timeout=max(0.0, min(deadline - began, _POLL)))
        now = time.monotonic()
        self._waited += now - began
        if delivery is not None:
            self._take(delivery)
        if delivery is None or self._waited - self._looked > _POLL:
            self._ended = delivery is None and self.queue.ends
            self._looked = self._waited
            self._done += self._gathering.give_up(math.inf if self._ended else self._waited)
            self._impatient = True
        return delivery is not None or (now < deadline and not self._ended)

    def _next_trajectory(self) -> Trajectory | None:
        while self._done:
            handed = self._hand_out((self._done[0],))
            self._done.popleft()
            if handed is not None:
                return handed[0]
        return None

    def _next_group(self) -> Group | None:
        while self._done:
            if members := self._groups.add(self._done.popleft(), self._waited):
                self._whole_groups.append(members)
        if self._impatient:
            self._impatient = False
            for members in self._groups.give_up(
                math.inf if self._ended else self._waited - self.settings.groups.timeout
            ):
                self._close_group(members)
        while self._whole_groups:
            members = self._whole_groups[0]
            handed = self._hand_out(members)
            self._whole_groups.popleft()
            if handed is not None:
                self._counters.groups += 1
                size = next((member.group_size for member in members if member.group_size), None)
                return Group(handed[0].group, size, handed)
        return None

    def _take(self, delivery: Delivery) -> None:
        self._counters.records += 1
        self._counters.bytes += delivery.nbytes
        self._counters.redelivered += delivery.redelivered
        if not self._settlement.arrive(delivery):
            return
        key = key_of(delivery)
        if self._progress.was_settled(*key):
            self._settlement.settle(key)
            self._counters.dropped += 1
            return
        self._progress.open(*key)
        identity = delivery.tag.rpartition("#")[0]
        if identity not in self._gathering and self._progress.has_consumed(identity):
            self._drop(key)
            return
        try:
            record = decode_record(delivery.frames)
        except RecordError as error:
            self._refuse(delivery, error)
            return
        if self._wanted(record.header):
            self._finish(self._gathering.add(record, delivery.frames, key, self._waited))
        else:
            self._drop(key)

    def _refuse(self, delivery: Delivery, error: RecordError) -> None:
        """A record that cannot be decoded makes its rollout a failed one, so that its group still completes."""
        self._counters.rejected += 1
        self._settlement.refuse(delivery, str(error))
        log.warning("%s: %s", delivery.tag, error)
        header, key = header_of(delivery.tag, delivery.key), key_of(delivery)
        if header is not None and self._wanted(header):
            self._finish(self._gathering.fail(header, key, error))
        else:
            self._settle(key)

    def _wanted(self, header: Header) -> bool:
        if header.identity in self._gathering:
            return True
        return not (
            self._progress.has_consumed(header.identity)
            or self._progress.has_consumed(_group_name(header.group_identity))
        )

    def _finish(self, rollout: PendingRollout | None) -> None:
        if rollout is not None:
            self._done.append(rollout)

    def _close_group(self, members: tuple[PendingRollout, ...]) -> None:
        """Give up waiting for the rest of a group: it is handed out as it is, or dropped; late members are dropped."""
        name = members[0].group_identity
        enough = self.settings.groups.keep_partial
        keep = enough is not None and len(members) >= enough
        self._counters.partial_groups += 1
        done = "handed out" if keep else "dropped"
        log.warning("group %s was given up before it was whole, and %s: %d members", name, done, len(members))
        self._progress.consume(_group_name(name))
        for rollout in self._gathering.of_group(name):
            if rollout not in members or not keep:
                self._consume(rollout)
        if keep:
            self._whole_groups.append(members)

    def _hand_out(self, rollouts: tuple[PendingRollout, ...]) -> tuple[Trajectory, ...] | None:
        """Give them to the trainer; None if they are too stale, and were consumed without that."""
        trajectories = tuple(self._gathering.join(rollout) for rollout in rollouts)
        if self.settings.require_images:
            for trajectory in trajectories:
                self._images.require(trajectory)
        for rollout in rollouts:
            self._consume(rollout)
        if self.version is not None:
            behind = [staleness(trajectory, self.version) for trajectory in trajectories]
            limit = self.settings.max_staleness
            if limit is not None and any(found is not None and found > limit for found in behind):
                self._counters.stale += len(trajectories)
                return None
            self._counters.measure(behind)
        self._counters.trajectories += len(trajectories)
        return trajectories

    def _consume(self, rollout: PendingRollout) -> None:
        self._progress.consume(rollout.identity)
        for key in self._gathering.take(rollout):
            self._settle(key)

    def _drop(self, key: Key) -> None:
        self._counters.dropped += 1
        self._settle(key)

    def _settle(self, key: Key) -> None:
        self._progress.settle(*key)
        self._settlement.settle(key)


def _group_name(group_identity: str) -> str:
    """A name that no rollout has."""
    return f"#{group_identity}"
