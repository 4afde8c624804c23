"""Sends the records of one attempt to the trajectories queue, with their numbers and a digest of the steps."""

import asyncio
import time
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from rollout.errors import RolloutError
from rollout.records.conversations import RootKind
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.kinds import (
    NamedReward,
    Record,
    RecordError,
    RecordHeader,
    RolloutFinished,
    RolloutStarted,
    Step,
    StepsDigest,
)
from rollout.records.task import Task
from rollout.records.wire import encode_record
from transports import Frames, Queue, QueueError

_PUT_TIMEOUT = 60.0
"""The time limit for the queue to accept a record, in seconds."""


class RolloutAlreadyFinished(RolloutError):
    """An environment calls the model in a rollout that has ended, or that cannot continue because a step was lost."""


@dataclass(frozen=True, slots=True)
class AttemptId:
    """The identity of one attempt at a rollout.

    Attributes:
        run: the run's id.
        environment: the name of the environment in the run.
        group: the id of the task, which is also the id of the group.
        rollout: the rollout's id.
        sample: the number of the rollout in its group, from 0 on.
        group_size: the number of rollouts in the group.
        attempt: the number of the attempt, from 1 on.
    """

    run: str
    environment: str
    group: str
    rollout: str
    sample: int
    group_size: int
    attempt: int


class RolloutStream:
    """Sends the records of one attempt. A record gets its number when it is made, so parallel turns keep their order.

    Attributes:
        attempt_id: the attempt.
        step_count: the number of steps that were encoded for the queue.
        byte_count: the number of bytes that the queue accepted.
        finished_record: the last record of the attempt; None before `put_finished` sends it.
        put_failed: whether the queue did not accept one of the records.
    """

    def __init__(self, queue: Queue, rollout_id: AttemptId) -> None:
        self.attempt_id = rollout_id
        self.step_count = 0
        self.byte_count = 0
        self.finished_record: RolloutFinished | None = None
        self.put_failed = False
        self._queue = queue
        self._next_seq = 0
        self._is_finished = False
        self._broken_by: RolloutError | None = None
        self._steps_digest = StepsDigest()
        self._started_at = time.monotonic()

    async def put_started(
        self,
        task: Task,
        *,
        policy_version: str,
        config_digest: str,
        model: str,
        pad_id: int | None,
        assets: str,
        layout: Mapping[str, Any],
    ) -> None:
        """Send the first record. `RolloutStarted` explains the arguments."""
        record = RolloutStarted(
            header=self.next_header(),
            task={"id": task.id, "index": task.index, "seed": task.seed, "data": dict(task.data)},
            sample=self.attempt_id.sample,
            group_size=self.attempt_id.group_size,
            policy_version=policy_version,
            config_digest=config_digest,
            model=model,
            pad_id=pad_id,
            assets=assets,
            layout=layout,
        )
        await self._put(encode_record(record), record)

    def put_step(self, step: Step) -> Coroutine[Any, Any, None]:
        """Count a step immediately, and return a coroutine that sends it.

        A finished record that is made before the step is sent already counts the step.

        Raises:
            RecordError: the step cannot be encoded. No more steps may follow, because the trace already contains the
                nodes of this step. A later step could have a parent that the trainer never received.
        """
        try:
            frames = encode_record(step)
        except RecordError as error:
            self._next_seq, self._broken_by = step.header.seq, error
            raise
        self.step_count += 1
        self._steps_digest.add(frames)
        return self._put(frames, step)

    async def put_finished(
        self,
        status: RolloutStatus,
        *,
        reward: float | None = None,
        metrics: Mapping[str, float] | None = None,
        error: Mapping[str, str] | None = None,
        limit: RolloutLimit = RolloutLimit.NONE,
        rewards: Mapping[str, NamedReward] | None = None,
        turn_rewards: Mapping[int, float] | None = None,
        unreceived_turns: Collection[int] = (),
        root_kinds: Mapping[int, RootKind] | None = None,
    ) -> RolloutFinished:
        """Send the last record and return it. `RolloutFinished` explains the arguments.

        Raises:
            RolloutAlreadyFinished: this method was called before.
            RecordError: the record cannot be encoded.
            QueueError: the queue does not accept the record.
        """
        self._require_unfinished()
        header = self._make_header()
        self._is_finished = True
        record = RolloutFinished(
            header=header,
            status=status,
            reward=reward,
            metrics=metrics or {},
            error=error,
            steps=self.step_count,
            digest=self._steps_digest.digest(),
            seconds=time.monotonic() - self._started_at,
            limit=limit,
            rewards=rewards or {},
            turn_rewards=turn_rewards or {},
            unreceived_turns=tuple(sorted(set(unreceived_turns))),
            root_kinds={root: kind for root, kind in (root_kinds or {}).items() if kind is not RootKind.MAIN},
        )
        self.finished_record = record  # set before sending, because the record may arrive even if sending fails
        await self._put(encode_record(record), record)
        return record

    def require_open(self) -> None:
        """Raise RolloutAlreadyFinished if no more steps may be sent: after the last record, or after a lost step."""
        self._require_unfinished()
        if self._broken_by is not None:
            raise RolloutAlreadyFinished(
                f"{self.attempt_id.rollout} cannot continue: {self._broken_by}"
            ) from self._broken_by

    def refuse_steps(self, reason: str = "one of its turns was interrupted") -> None:
        """Refuse all further steps. `reason` is the text of the error that they raise."""
        self._broken_by = self._broken_by or RolloutAlreadyFinished(reason)

    def _require_unfinished(self) -> None:
        if self._is_finished:
            raise RolloutAlreadyFinished(
                f"{self.attempt_id.rollout} has ended, but a task of its environment still calls the model. "
                "Await or cancel every task that run() starts before run() returns."
            )

    def next_header(self) -> RecordHeader:
        """Return the header of the next record, with a new number. Raises the errors of `require_open`."""
        self.require_open()
        return self._make_header()

    def _make_header(self) -> RecordHeader:
        rollout_id = self.attempt_id
        header = RecordHeader(
            rollout_id.run,
            rollout_id.environment,
            rollout_id.group,
            rollout_id.rollout,
            rollout_id.attempt,
            self._next_seq,
        )
        self._next_seq += 1
        return header

    async def _put(self, frames: Frames, record: Record) -> None:
        try:
            await _put_despite_cancellation(self._queue.put(frames, key=record.header.group, tag=record.header.tag))
        except TimeoutError:
            self.put_failed = True
            raise QueueError(
                f"{self._queue.url}: the queue did not accept the record {record.header.tag} within {_PUT_TIMEOUT:g} s"
            ) from None
        except QueueError:
            self.put_failed = True
            raise
        self.byte_count += sum(memoryview(frame).nbytes for frame in frames)


async def _put_despite_cancellation(put_record: Coroutine[Any, Any, None]) -> None:
    """Wait until a record is sent, even if the caller is cancelled.

    A lost record would leave a gap in the numbers, and later turns build on its nodes. An environment may cancel a turn
    in any way and several times. The shielded scope protects against anyio's scopes. The separate task protects against
    `asyncio.wait_for`.
    """
    cancellation: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        put_task = asyncio.ensure_future(_put_with_timeout(put_record))
        while not put_task.done():
            try:
                await asyncio.wait([put_task])
            except asyncio.CancelledError as error:
                cancellation = error
        put_task.result()
    if cancellation is not None:
        raise cancellation


async def _put_with_timeout(put_record: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(_PUT_TIMEOUT):
        await put_record
