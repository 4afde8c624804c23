"""Puts the records of one attempt on the trajectories queue, numbered in order and with a digest of the steps."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from rollout.errors import RolloutError
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
"""How many seconds the queue may take to accept a record."""


class RolloutAlreadyFinished(RolloutError):
    """An environment asks the model in a rollout that has ended, or that cannot continue because it lacks a step."""


@dataclass(frozen=True, slots=True)
class AttemptId:
    """One attempt at a rollout.

    Attributes:
        run: the run's id.
        environment: the name of the environment in the run.
        group: the id of the task; all rollouts of a task are its group.
        rollout: the rollout's id.
        sample: the number of the rollout in its group, from 0 on.
        group_size: how many rollouts the group has.
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
    """Puts the records of one attempt. A record gets its number at once, so that parallel turns cannot swap numbers.

    Attributes:
        attempt_id: the attempt.
        step_count: how many steps were encoded for the queue.
        byte_count: how many bytes the queue accepted.
        finished_record: the last record; None until the put of it begins.
        put_failed: whether the queue did not accept a record.
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
        """Put the first record; the arguments are explained at `RolloutStarted`."""
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
        """Count a step at once, and return a coroutine that puts it.

        A finished record that is made before the put includes the step.

        Raises:
            RecordError: the step cannot be encoded. No step may follow, because the trace already contains the nodes
                of this one, and a later step could have a parent that the trainer never received.
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
    ) -> RolloutFinished:
        """Put the last record, and return it; the arguments are explained at `RolloutFinished`.

        Raises:
            RolloutAlreadyFinished: there is a last record.
            RecordError: it cannot be encoded.
            QueueError: the queue does not accept it.
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
        )
        self.finished_record = record  # set before the put, because a put that is cancelled may still arrive
        await self._put(encode_record(record), record)
        return record

    def require_open(self) -> None:
        """Raise RolloutAlreadyFinished if no step may follow: after the last record, or after a step that is lost."""
        self._require_unfinished()
        if self._broken_by is not None:
            raise RolloutAlreadyFinished(
                f"{self.attempt_id.rollout} cannot go on: {self._broken_by}"
            ) from self._broken_by

    def refuse_steps(self, reason: str = "a turn of it was interrupted") -> None:
        """Let no step follow, for this reason."""
        self._broken_by = self._broken_by or RolloutAlreadyFinished(reason)

    def _require_unfinished(self) -> None:
        if self._is_finished:
            raise RolloutAlreadyFinished(
                f"{self.attempt_id.rollout} has ended, and a task of its environment still asks the model. "
                "Await or cancel every task that run() starts before it returns."
            )

    def next_header(self) -> RecordHeader:
        """Return the header of the next record, with a new number. Raises like `require_open`."""
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
                f"{self._queue.url}: {record.header.tag} was not accepted within {_PUT_TIMEOUT:g} s"
            ) from None
        except QueueError:
            self.put_failed = True
            raise
        self.byte_count += sum(memoryview(frame).nbytes for frame in frames)


async def _put_despite_cancellation(put_record: Coroutine[Any, Any, None]) -> None:
    """Wait until a record is put, even if the caller is cancelled.

    Without the record, the numbers would have a gap, and later turns build on the nodes that the trace already has. An
    environment may cancel a turn in any way and more than once. A shielded scope helps only against scopes of anyio;
    against `asyncio.wait_for`, only a task of its own helps.
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
