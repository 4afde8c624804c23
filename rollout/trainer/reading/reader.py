"""Reads whole trajectories from a queue, each exactly once relative to the trainer's checkpoint.

    async with open_reader(url, rank=rank, world_size=world_size) as reader:
        reader.load_state_dict(checkpoint["reader"])        # skips what the loaded weights have trained on
        async for group in reader.groups():
            train(group)
            if time_to_save:
                save(weights, reader=reader.state_dict())    # atomically, in one file
                await reader.commit()                        # from now on the queue may delete the records

The queue delivers each record at least once, in any order. The state from `state_dict` marks every returned trajectory
as consumed. Only `commit` acks records, and it acks exactly those in the saved state. Therefore a trainer may die at
any time: it restarts from its last checkpoint and gets every trajectory that the checkpoint's weights have not seen.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from rollout.records.kinds import RecordError, RecordHeader, header_from_tag
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.records.wire import decode_queue_record
from rollout.trainer.errors import ImagesUnreadable, ReaderStateError
from rollout.trainer.reading.acks import PendingAcks, lane_position
from rollout.trainer.reading.consumed import ConsumedRollouts
from rollout.trainer.reading.end import End, EndFinder
from rollout.trainer.reading.groups import Group, GroupAssembler
from rollout.trainer.reading.held_back import hold_back
from rollout.trainer.reading.image_access import MAX_UNREADABLE, ImageAccessCheck
from rollout.trainer.reading.pending import PendingRollout, PendingRollouts, RecordKey
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.reading.spill import StepStore
from rollout.trainer.reading.staleness import staleness
from rollout.trainer.reading.stats import ReaderCounters, ReaderStats
from rollout.trainer.trajectory import Trajectory
from transports import Delivery, Queue

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 0.5
_SHORTEST_READ_SECONDS = 0.01
"""The time in which a reader handles records that have already arrived, even if its timeout is shorter."""
_MAX_BLOCKING_SECONDS = 0.01
"""After this time, a reader that is handling records lets other tasks of the event loop run."""


class TrajectoryReader:
    """Reads trajectories, or whole groups, from one queue for one trainer process.

    Attributes:
        settings: how the reader treats late, large, incomplete or stale data.
        version: the trainer's policy version. Set it after each update; the reader needs it to compute the staleness.
            None: the staleness is unknown, and `max_staleness` drops nothing.
        queue: the queue that the reader reads.
    """

    def __init__(self, queue: Queue, settings: ReaderSettings | None = None) -> None:
        self.settings = settings or ReaderSettings()
        self.version: int | None = None
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
        """Groups whose images could not be read, at a time when no image had been read yet. The reader retries them."""
        self._images_problem = ""
        self._waited_seconds = 0.0
        self._timeouts_checked_at = 0.0
        self._group_timeouts_due = False
        """Whether the next read must look for groups that have timed out."""
        self._end = End.NOT_YET
        self._end_finder = EndFinder(
            queue,
            wait_for_more=self.settings.wait_for_more,
            gap_timeout=self.settings.gap_timeout,
            given_up_runs=self.settings.given_up_runs,
        )
        self._end_keys: list[RecordKey] = []
        """The keys of the statuses that say that a launch has ended, until everything before them is returned."""
        self._has_loaded_state = False
        self._next_break_at = 0.0
        """The time at which other tasks of the event loop must run, even if more records have already arrived."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step_store.close()
        await self.queue.aclose()

    @property
    def ended(self) -> bool:
        """Whether the launches have ended, and the reader has returned everything that they completed.

        It becomes true while the reader waits for records. If a launch was killed, it stays false until a resumed
        launch has ended. It becomes false again if another launch writes to the queue, and the reader reads on.
        """
        return self._end is not End.NOT_YET and not (
            self._ready_rollouts or self._ready_groups or self._unreadable_groups
        )

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Yield trajectories until the launches have ended; see `ended`."""
        while not self.ended:
            if (trajectory := await self.receive(timeout=_POLL_SECONDS)) is not None:
                yield trajectory

    async def groups(self) -> AsyncIterator[Group]:
        """Yield groups until the launches have ended; see `ended`.

        If a launch stopped before all rollouts were played, incomplete groups stay in the queue for a resumed launch.
        """
        while not self.ended:
            if (group := await self.receive_group(timeout=_POLL_SECONDS)) is not None:
                yield group

    async def receive(self, *, timeout: float) -> Trajectory | None:
        """Return the next finished trajectory, with any status; None if none is finished within `timeout` seconds.

        At the end of the run it returns None at once; see `ended`. If only a few images of a directory cannot be read,
        their trajectories are returned as failed.

        Raises:
            ImagesUnreadable: this process can read no images, or many images of one directory are unreadable. The
                trajectories are not consumed.
            SpillError: the reader cannot spill steps to disk.
        """
        return await self._read_until(self._next_trajectory, timeout)

    async def receive_group(self, *, timeout: float) -> Group | None:
        """Return the next group; None if none is ready within `timeout` seconds. Raises the same errors as `receive`.

        A group is whole, unless `settings.groups` allows partial groups. Do not call both `receive` and
        `receive_group` on the same reader.
        """
        return await self._read_until(self._next_group, timeout)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that marks everything returned so far as consumed.

        Save the state atomically with the weights that were trained on these trajectories. It is JSON-like data of
        bounded size. Pass its `number` to `commit`.
        """
        return {**self._consumed_rollouts.state(), "number": self._pending_acks.assign_state_number()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ReaderStateError: the reader has already received a record, or the state is invalid.
        """
        if self._counters.records:
            raise ReaderStateError("Call load_state_dict() before the first receive().")
        self._consumed_rollouts.load(state)
        self._has_loaded_state = True

    async def commit(self, number: int | None = None) -> None:
        """Ack the records in the state with this number, or in the last state if the number is None.

        Call it when the state is safely stored.

        Raises:
            LeaseLost: the lease of some records has ended, so another process may read the queue now.
        """
        await self._pending_acks.commit(number)
        self._consumed_rollouts.prune_acked(self._pending_acks.unacked)

    def describe_wait(self) -> str:
        """Return sentences that say for what the reader waits: a launch, unfinished rollouts, or incomplete groups."""
        return self._end_finder.describe_wait(
            self._consumed_rollouts.launches,
            unfinished=[rollout.identity for rollout in self._pending_rollouts.unfinished()],
            grouped=self._group_assembler.waiting,
            stale=self._counters.stale,
        )

    def stats(self) -> ReaderStats:
        """Return the reader's counters and the amount of data that it holds; may be called from any thread."""
        return ReaderStats(
            **{**vars(self._counters), "staleness": self._counters.staleness.copy()},
            unfinished=len(self._pending_rollouts.unfinished()),
            waiting=len(self._ready_rollouts)
            + self._group_assembler.waiting
            + sum(map(len, [*self._ready_groups, *self._unreadable_groups])),
            unacked=self._pending_acks.unacked,
            bytes_in_memory=self._step_store.in_memory,
            bytes_on_disk=self._step_store.on_disk,
        )

    async def _read_until(self, next_item: Callable[[], T | None], timeout: float) -> T | None:
        """Handle records until `next_item` returns an item or the timeout passes; return the item or None."""
        begun_at = time.monotonic()
        deadline, busy_until = begun_at + timeout, begun_at + max(timeout, _SHORTEST_READ_SECONDS)
        self._retry_images()
        is_reading, now = True, begun_at
        while True:
            # Let other tasks run before `next_item`: if this call were cancelled after it, the item would be lost.
            if now >= self._next_break_at:
                await asyncio.sleep(0)
                self._next_break_at = time.monotonic() + _MAX_BLOCKING_SECONDS
            if (item := next_item()) is not None or not is_reading:
                if item is None and self.ended:
                    self._settle_end()
                return item
            received = not self._ready_groups and await self._receive_record(deadline)
            now = time.monotonic()
            if received or self._ready_groups:
                is_reading = now < busy_until
            else:
                is_reading = now < deadline and self._end is End.NOT_YET
                if self._unreadable_groups and not self._ready_rollouts:
                    raise ImagesUnreadable(self._images_problem)

    async def _receive_record(self, deadline: float) -> bool:
        """Wait for a record, handle it, and fail rollouts whose timeout has passed; return whether a record arrived."""
        started_at = time.monotonic()
        delivery = await self.queue.receive(timeout=max(0.0, min(deadline - started_at, _POLL_SECONDS)))
        self._waited_seconds += time.monotonic() - started_at
        if delivery is not None:
            self._end = End.NOT_YET
            self._end_finder.note_record()
            self._handle_delivery(delivery)
        else:
            self._end = self._end_finder.find(
                self._consumed_rollouts.launches, has_incomplete=self._has_incomplete, describe=self.describe_wait
            )
        if delivery is None or self._waited_seconds - self._timeouts_checked_at > _POLL_SECONDS:
            self._timeouts_checked_at = self._waited_seconds
            self._ready_rollouts += self._pending_rollouts.fail_stalled(
                math.inf if self._end is End.COMPLETE else self._waited_seconds
            )
            self._group_timeouts_due = True
        return delivery is not None

    def _next_trajectory(self) -> Trajectory | None:
        """Consume and return the next trajectory; None if none is ready."""
        while self._ready_rollouts:
            self._ready_groups.append((self._ready_rollouts.popleft(),))
        trajectories = self._consume_next()
        return trajectories[0] if trajectories else None

    def _next_group(self) -> Group | None:
        """Consume and return the next group; None if none is ready."""
        while self._ready_rollouts:
            if members := self._group_assembler.add(self._ready_rollouts.popleft(), self._waited_seconds):
                self._ready_groups.append(members)
        if self._group_timeouts_due:
            self._group_timeouts_due = False
            for members in self._group_assembler.give_up(
                math.inf if self._end is End.COMPLETE else self._waited_seconds - self.settings.groups.timeout
            ):
                self._give_up_group(members)
        trajectories = self._consume_next()
        if not trajectories:
            return None
        self._counters.groups += 1
        size = next((member.group_size for member in trajectories if member.group_size), None)
        return Group(trajectories[0].group, size, trajectories)

    def _handle_delivery(self, delivery: Delivery) -> None:
        """Add a delivered record to its rollout, or drop it if it is not needed."""
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
            record = decode_queue_record(delivery.frames)
        except RecordError as error:
            self._handle_undecodable(delivery, error)
            return
        if isinstance(record, LaunchStatus):
            self._consumed_rollouts.launches.add(record)
            if record.phase is LaunchPhase.RUNNING:
                self._settle(key)
            else:
                self._end_keys.append(key)
        elif self._is_wanted(record.header):
            self._add_finished(self._pending_rollouts.add(record, delivery.frames, key, self._waited_seconds))
        else:
            self._drop(key)

    def _handle_undecodable(self, delivery: Delivery, error: RecordError) -> None:
        """Reject a record that cannot be decoded, and fail its rollout, so that its group still becomes whole."""
        self._counters.rejected += 1
        self._pending_acks.mark_rejected(delivery, str(error))
        log.warning("record %r cannot be decoded: %s", delivery.tag, error)
        header, key = header_from_tag(delivery.tag, delivery.key), lane_position(delivery)
        if header is not None and self._is_wanted(header):
            self._add_finished(self._pending_rollouts.mark_failed(header, key, error))
        else:
            self._settle(key)

    def _has_incomplete(self) -> bool:
        """Whether the reader holds rollouts or groups that it has not received completely."""
        return bool(self._pending_rollouts.unfinished() or self._group_assembler.waiting)

    def _settle_end(self) -> None:
        """Settle what launches have said about their end, now that everything before it was returned."""
        if not (self.queue.ends or self._counters.trajectories or self._has_loaded_state):
            self._end_finder.warn_of_empty_end(self._consumed_rollouts.launches)
        self._consumed_rollouts.launches.settle()
        for key in self._end_keys:
            self._settle(key)
        self._end_keys.clear()

    def _is_wanted(self, header: RecordHeader) -> bool:
        """Whether the record's rollout is pending, or else both the rollout and its group are not consumed."""
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
        """Stop waiting for the rest of a group; make its members ready or drop them. Later members are dropped."""
        group_identity = members[0].group_identity
        min_members = self.settings.groups.keep_partial
        keep = min_members is not None and len(members) >= min_members
        self._counters.partial_groups += 1
        outcome = "kept" if keep else "dropped"
        log.warning("group %s timed out; its %d members were %s", group_identity, len(members), outcome)
        self._consumed_rollouts.mark_consumed(_abandoned_group_name(group_identity))
        for rollout in self._pending_rollouts.in_group(group_identity):
            if rollout not in members or not keep:
                self._consume(rollout)
        if keep:
            self._ready_groups.append(members)

    def _consume_next(self) -> tuple[Trajectory, ...] | None:
        """Consume the next ready rollouts and return their trajectories; None if none are ready or they are stale."""
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
        """Let the next ready rollouts wait until another image has been read.

        Until then, the reader does not know whether their images are damaged or the mount is missing.

        Raises:
            ImagesUnreadable: `MAX_UNREADABLE` rollouts wait.
        """
        self._unreadable_groups.append(self._ready_groups.popleft())
        self._images_problem = problem
        if sum(map(len, self._unreadable_groups)) >= MAX_UNREADABLE:
            raise ImagesUnreadable(problem)

    def _retry_images(self) -> None:
        """Make the groups with unreadable images ready again."""
        self._ready_groups.extendleft(reversed(self._unreadable_groups))
        self._unreadable_groups.clear()

    def _consume(self, rollout: PendingRollout) -> None:
        """Mark a rollout as consumed, and settle its records."""
        self._consumed_rollouts.mark_consumed(rollout.identity)
        for key in self._pending_rollouts.remove(rollout):
            self._settle(key)

    def _drop(self, key: RecordKey) -> None:
        """Settle a record without using it."""
        self._counters.dropped += 1
        self._settle(key)

    def _settle(self, key: RecordKey) -> None:
        """Mark a record as settled, so that the next state contains it and a commit acks it."""
        self._consumed_rollouts.mark_settled(*key)
        self._pending_acks.mark_settled(key)


def _abandoned_group_name(group_identity: str) -> str:
    """Return the name under which an abandoned group is marked as consumed; no rollout has such a name."""
    return f"#{group_identity}"
