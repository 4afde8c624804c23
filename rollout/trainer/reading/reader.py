"""The trainer's side of the queue: whole trajectories, each exactly once relative to the trainer's checkpoint.

    async with open_reader(url, rank=rank, world_size=world_size) as reader:
        reader.load_state_dict(checkpoint["reader"])        # drops what the loaded weights have trained on
        async for group in reader.groups():
            train(group)
            if time_to_save:
                save(weights, reader=reader.state_dict())    # atomically, in one file
                await reader.commit()                        # only now may the queue forget

Delivery is at least once, and redelivery may change the order. The next `state_dict` counts every trajectory that was
handed out as consumed. Nothing is acked before a `commit`, and a commit acks exactly what that state contains. So a
trainer that dies at any point restarts from its last checkpoint and gets everything that the checkpoint's weights have
not seen.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rollout.records.endings import RolloutLimit
from rollout.records.kinds import RecordError, RecordHeader, header_from_tag
from rollout.records.wire import decode_record
from rollout.trainer.errors import ImagesUnreadable, ReaderStateError
from rollout.trainer.reading.acks import PendingAcks, lane_position
from rollout.trainer.reading.consumed import ConsumedRollouts
from rollout.trainer.reading.groups import Group, GroupAssembler, GroupPolicy
from rollout.trainer.reading.held_back import hold_back, limits_named
from rollout.trainer.reading.image_access import MAX_UNREADABLE, ImageAccessCheck
from rollout.trainer.reading.pending import PendingRollout, PendingRollouts, RecordKey
from rollout.trainer.reading.spill import StepStore
from rollout.trainer.reading.staleness import staleness
from rollout.trainer.reading.stats import ReaderCounters, ReaderStats
from rollout.trainer.trajectory import Trajectory
from transports import Delivery, Queue

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 0.5
_SHORTEST_READ_SECONDS = 0.01
"""How long a reader handles records that are at hand, if its time-out is shorter."""
_TURN_SECONDS = 0.01
"""How long a reader keeps the event loop to itself while records are at hand."""


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """How a reader treats late, large, incomplete or stale data. Time-outs count only its waiting for records."""

    gap_timeout: float = 30.0
    """Seconds that a finished attempt may lack a record, which a redelivery may still bring."""
    unfinished_timeout: float = 7200.0
    """Seconds without a record after which an unfinished attempt is given up."""
    memory_limit: int = 1 << 30
    """Bytes that steps may take in memory, as frames and decoded; more steps are spilled to the disk."""
    spill_directory: Path | str | None = None
    """Where they are spilled; None: the system's directory for temporary files."""
    groups: GroupPolicy = field(default_factory=GroupPolicy)
    """What happens to groups that stay partial."""
    max_staleness: int | None = None
    """How many versions a trajectory may be behind the trainer's; a group with a staler one is dropped."""
    require_images: bool = True
    """Check that the images of a trajectory can be read before it is handed out."""
    untrained_limits: frozenset[RolloutLimit | str] = frozenset()
    """Rollouts with a score that one of these limits stopped are handed out, and do not train; empty: they train."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "untrained_limits", limits_named(self.untrained_limits))


class TrajectoryReader:
    """Reads one queue for one trainer process: trajectories with `receive`, or whole groups with `receive_group`."""

    def __init__(self, queue: Queue, settings: ReaderSettings | None = None) -> None:
        self.settings = settings or ReaderSettings()
        self.version: int | None = None
        """The trainer's version of the policy; set it after each update, so that staleness is known."""
        self.queue = queue
        self._step_store = StepStore(self.settings.memory_limit, self.settings.spill_directory)
        self._pending_rollouts = PendingRollouts(self._step_store, self.settings)
        self._group_assembler: GroupAssembler[PendingRollout] = GroupAssembler()
        self._consumed_rollouts = ConsumedRollouts()
        self._pending_acks = PendingAcks(queue)
        self._image_access = ImageAccessCheck()
        self._counters = ReaderCounters()
        self._ready_rollouts: deque[PendingRollout] = deque()
        self._ready_groups: deque[tuple[PendingRollout, ...]] = deque()
        self._unreadable_groups: deque[tuple[PendingRollout, ...]] = deque()
        """Whose images cannot be read, while those of no others were read."""
        self._images_problem = ""
        self._waited_seconds = 0.0
        self._timeouts_checked_at = 0.0
        self._group_timeouts_due = False
        """Whether the groups must be checked for those that have waited too long."""
        self._queue_ended = False
        self._turn_ends_at = 0.0
        """When the other tasks of the event loop must run again, even if there are records at hand."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step_store.close()
        await self.queue.aclose()

    @property
    def ended(self) -> bool:
        """Whether everything was handed out and nothing will ever come again."""
        return self._queue_ended and not (
            self._ready_rollouts or self._ready_groups or self._unreadable_groups or self._group_assembler.waiting
        )

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Yield trajectories until the queue ends, which only a replayed one does; leave or cancel the loop to stop."""
        while not self.ended:
            if (trajectory := await self.receive(timeout=_POLL_SECONDS)) is not None:
                yield trajectory

    async def groups(self) -> AsyncIterator[Group]:
        """Yield groups, until the queue ends."""
        while not self.ended:
            if (group := await self.receive_group(timeout=_POLL_SECONDS)) is not None:
                yield group

    async def receive(self, *, timeout: float) -> Trajectory | None:
        """The next finished trajectory, whatever its status, or None when none was finished in time.

        Raises:
            ImagesUnreadable: this process cannot read the images of any trajectory, or of several in one directory;
                they are not consumed. If it can read those of others, a single trajectory fails.
            SpillError: the disk is full.
        """
        return await self._read_until(self._next_trajectory, timeout)

    async def receive_group(self, *, timeout: float) -> Group | None:
        """The next group, whole unless `settings.groups` allows partial ones, or None when there was none in time.

        A reader is used for trajectories or for groups, not for both. Raises what `receive` does.
        """
        return await self._read_until(self._next_group, timeout)

    def state_dict(self) -> dict[str, Any]:
        """The state of what was handed out so far; save it atomically with the weights that were trained on it.

        It is JSON-like and bounded. Its `number` is what `commit` takes.
        """
        return {**self._consumed_rollouts.state(), "number": self._pending_acks.assign_state_number()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where a saved state ended. Raises ReaderStateError after records were read, or for an invalid state."""
        if self._counters.records:
            raise ReaderStateError("load_state_dict comes before the first receive.")
        self._consumed_rollouts.load(state)

    async def commit(self, number: int | None = None) -> None:
        """Ack what a state contains: the one of this number, or the last one. Call it once the state is safely stored.

        Raises:
            LeaseLost: this process was silent for so long that another one may have taken over.
        """
        await self._pending_acks.commit(number)
        self._consumed_rollouts.prune_acked(self._pending_acks.unacked)

    def stats(self) -> ReaderStats:
        """What it did and what it holds; may be called from any thread."""
        counters = self._counters
        return ReaderStats(
            trajectories=counters.trajectories,
            groups=counters.groups,
            records=counters.records,
            bytes=counters.bytes,
            dropped=counters.dropped,
            rejected=counters.rejected,
            stale=counters.stale,
            held_back=counters.held_back,
            partial_groups=counters.partial_groups,
            unfinished=len(self._pending_rollouts.unfinished()),
            waiting=len(self._ready_rollouts)
            + self._group_assembler.waiting
            + sum(map(len, [*self._ready_groups, *self._unreadable_groups])),
            unacked=self._pending_acks.unacked,
            bytes_in_memory=self._step_store.in_memory,
            bytes_on_disk=self._step_store.on_disk,
            redelivered=counters.redelivered,
            staleness=dict(counters.staleness),
        )

    async def _read_until(self, next_item: Callable[[], T | None], timeout: float) -> T | None:
        begun_at = time.monotonic()
        deadline, busy_until = begun_at + timeout, begun_at + max(timeout, _SHORTEST_READ_SECONDS)
        self._retry_images()
        is_reading, now = True, begun_at
        while True:
            # Not after `next_item`: a cancellation would lose the item.
            if now >= self._turn_ends_at:
                await asyncio.sleep(0)
                self._turn_ends_at = time.monotonic() + _TURN_SECONDS
            if (item := next_item()) is not None or not is_reading:
                return item
            received = not self._ready_groups and await self._receive_record(deadline)
            now = time.monotonic()
            if received or self._ready_groups:
                is_reading = now < busy_until
            else:
                is_reading = now < deadline and not self._queue_ended
                if self._unreadable_groups and not self._ready_rollouts:
                    raise ImagesUnreadable(self._images_problem)

    async def _receive_record(self, deadline: float) -> bool:
        """Receive and handle a record, or let time pass; returns whether there was a record."""
        started_at = time.monotonic()
        delivery = await self.queue.receive(timeout=max(0.0, min(deadline - started_at, _POLL_SECONDS)))
        self._waited_seconds += time.monotonic() - started_at
        if delivery is not None:
            self._handle_delivery(delivery)
        if delivery is None or self._waited_seconds - self._timeouts_checked_at > _POLL_SECONDS:
            self._queue_ended = delivery is None and self.queue.ends
            self._timeouts_checked_at = self._waited_seconds
            self._ready_rollouts += self._pending_rollouts.fail_stalled(
                math.inf if self._queue_ended else self._waited_seconds
            )
            self._group_timeouts_due = True
        return delivery is not None

    def _next_trajectory(self) -> Trajectory | None:
        while self._ready_rollouts:
            self._ready_groups.append((self._ready_rollouts.popleft(),))
        trajectories = self._hand_out_next()
        return trajectories[0] if trajectories else None

    def _next_group(self) -> Group | None:
        while self._ready_rollouts:
            if members := self._group_assembler.add(self._ready_rollouts.popleft(), self._waited_seconds):
                self._ready_groups.append(members)
        if self._group_timeouts_due:
            self._group_timeouts_due = False
            for members in self._group_assembler.give_up(
                math.inf if self._queue_ended else self._waited_seconds - self.settings.groups.timeout
            ):
                self._give_up_group(members)
        trajectories = self._hand_out_next()
        if not trajectories:
            return None
        self._counters.groups += 1
        size = next((member.group_size for member in trajectories if member.group_size), None)
        return Group(trajectories[0].group, size, trajectories)

    def _handle_delivery(self, delivery: Delivery) -> None:
        self._counters.records += 1
        self._counters.bytes += delivery.nbytes
        self._counters.redelivered += delivery.redelivered
        if not self._pending_acks.add_delivery(delivery):
            return
        key = lane_position(delivery)
        if self._consumed_rollouts.was_settled(*key):
            self._pending_acks.mark_settled(key)
            self._counters.dropped += 1
            return
        self._consumed_rollouts.mark_arrived(*key)
        identity = delivery.tag.rpartition("#")[0]
        if identity not in self._pending_rollouts and self._consumed_rollouts.is_consumed(identity):
            self._drop(key)
            return
        try:
            record = decode_record(delivery.frames)
        except RecordError as error:
            self._handle_undecodable(delivery, error)
            return
        if self._is_wanted(record.header):
            self._add_finished(self._pending_rollouts.add(record, delivery.frames, key, self._waited_seconds))
        else:
            self._drop(key)

    def _handle_undecodable(self, delivery: Delivery, error: RecordError) -> None:
        """A record that cannot be decoded makes its rollout a failed one, so that its group still completes."""
        self._counters.rejected += 1
        self._pending_acks.mark_rejected(delivery, str(error))
        log.warning("record %r: %s", delivery.tag, error)
        header, key = header_from_tag(delivery.tag, delivery.key), lane_position(delivery)
        if header is not None and self._is_wanted(header):
            self._add_finished(self._pending_rollouts.mark_failed(header, key, error))
        else:
            self._settle(key)

    def _is_wanted(self, header: RecordHeader) -> bool:
        if header.identity in self._pending_rollouts:
            return True
        return not (
            self._consumed_rollouts.is_consumed(header.identity)
            or self._consumed_rollouts.is_consumed(_abandoned_group_name(header.group_identity))
        )

    def _add_finished(self, rollout: PendingRollout | None) -> None:
        if rollout is not None:
            self._ready_rollouts.append(rollout)

    def _give_up_group(self, members: tuple[PendingRollout, ...]) -> None:
        """Give up waiting for the rest of a group: it is handed out partial, or dropped. Late members are dropped."""
        group_identity = members[0].group_identity
        min_members = self.settings.groups.keep_partial
        keep = min_members is not None and len(members) >= min_members
        self._counters.partial_groups += 1
        outcome = "handed out" if keep else "dropped"
        log.warning(
            "group %s was given up before it was whole, and %s: %d members", group_identity, outcome, len(members)
        )
        self._consumed_rollouts.mark_consumed(_abandoned_group_name(group_identity))
        for rollout in self._pending_rollouts.in_group(group_identity):
            if rollout not in members or not keep:
                self._consume(rollout)
        if keep:
            self._ready_groups.append(members)

    def _hand_out_next(self) -> tuple[Trajectory, ...] | None:
        """Consume the first ready rollouts and return their trajectories; None if there are none to hand out."""
        if self._unreadable_groups and self._image_access.has_read:
            self._retry_images()
        if not self._ready_groups:
            return None
        rollouts = self._ready_groups[0]
        trajectories = tuple(self._pending_rollouts.build_trajectory(rollout) for rollout in rollouts)
        if self.settings.require_images:
            problems = [self._image_access.problem(trajectory) for trajectory in trajectories]
            if any(problems) and not self._image_access.has_read:
                self._set_aside(next(filter(None, problems)))
                return None
            trajectories = tuple(
                self._image_access.fail(trajectory, problem) if problem else trajectory
                for trajectory, problem in zip(trajectories, problems, strict=True)
            )
        trajectories = tuple(hold_back(trajectory, self.settings.untrained_limits) for trajectory in trajectories)
        self._ready_groups.popleft()
        for rollout in rollouts:
            self._consume(rollout)
        if self.version is not None:
            versions_behind = [staleness(trajectory, self.version) for trajectory in trajectories]
            max_staleness = self.settings.max_staleness
            if max_staleness is not None and any(
                count is not None and count > max_staleness for count in versions_behind
            ):
                self._counters.stale += len(trajectories)
                return None
            self._counters.add_staleness(versions_behind)
        self._counters.trajectories += len(trajectories)
        self._counters.held_back += sum(trajectory.held_back for trajectory in trajectories)
        return trajectories

    def _set_aside(self, problem: str) -> None:
        """Let the first ready rollouts wait until the images of others can be read, which shows that they are bad."""
        self._unreadable_groups.append(self._ready_groups.popleft())
        self._images_problem = problem
        if sum(map(len, self._unreadable_groups)) >= MAX_UNREADABLE:
            raise ImagesUnreadable(problem)

    def _retry_images(self) -> None:
        self._ready_groups.extendleft(reversed(self._unreadable_groups))
        self._unreadable_groups.clear()

    def _consume(self, rollout: PendingRollout) -> None:
        self._consumed_rollouts.mark_consumed(rollout.identity)
        for key in self._pending_rollouts.remove(rollout):
            self._settle(key)

    def _drop(self, key: RecordKey) -> None:
        self._counters.dropped += 1
        self._settle(key)

    def _settle(self, key: RecordKey) -> None:
        self._consumed_rollouts.mark_settled(*key)
        self._pending_acks.mark_settled(key)


def _abandoned_group_name(group_identity: str) -> str:
    """The name under which an abandoned group is marked as consumed; no rollout has such a name."""
    return f"#{group_identity}"
