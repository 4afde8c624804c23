"""One attempt's records, numbered and digested in order, on their way to the trajectories queue."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from rollout.errors import RolloutError
from rollout.records.task import Task
from rollout.records.wire import (
    Header,
    Record,
    RecordError,
    RolloutFinished,
    RolloutStarted,
    RolloutStatus,
    Step,
    StepsDigest,
    encode_record,
)
from transports import Frames, Queue, QueueError

_PUT_TIMEOUT = 60.0


class RolloutOver(RolloutError):
    """An environment goes on with a rollout that has its finished record, or lost a step."""


@dataclass(frozen=True, slots=True)
class RolloutId:
    """One rollout: the `sample`-th of its task. All samples of a task are its group."""

    run: str
    environment: str
    group: str
    rollout: str
    sample: int
    group_size: int
    attempt: int


class RolloutStream:
    """Numbers records when they are made, without waiting, so that turns in parallel cannot swap numbers."""

    def __init__(self, queue: Queue, identity: RolloutId) -> None:
        self.identity = identity
        self.steps = 0
        self.bytes = 0
        self.final: RolloutFinished | None = None
        self._queue = queue
        self._seq = 0
        self._over = False
        self._lost: RecordError | None = None
        self._digest = StepsDigest()
        self._began = time.monotonic()

    async def started(
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
        record = RolloutStarted(
            header=self.next_header(),
            task={"id": task.id, "index": task.index, "seed": task.seed, "data": dict(task.data)},
            sample=self.identity.sample,
            group_size=self.identity.group_size,
            policy_version=policy_version,
            config_digest=config_digest,
            model=model,
            pad_id=pad_id,
            assets=assets,
            layout=layout,
        )
        await self._put(encode_record(record), record)

    def step(self, step: Step) -> Coroutine[Any, Any, None]:
        """Count a step at once, so that a finished record made meanwhile knows it; await what is returned to put it.

        Raises:
            RecordError: it cannot be encoded. It is the last: the trace holds its nodes, and a later step could hang
                from what no trainer ever saw.
        """
        try:
            frames = encode_record(step)
        except RecordError as error:
            self._seq, self._lost = step.header.seq, error
            raise
        self.steps += 1
        self._digest.add(frames)
        return self._put(frames, step)

    async def finished(
        self,
        status: RolloutStatus,
        *,
        reward: float | None = None,
        metrics: Mapping[str, float] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> RolloutFinished:
        self._require_unfinished()
        header = self._numbered()
        self._over = True
        record = RolloutFinished(
            header=header,
            status=status,
            reward=reward,
            metrics=metrics or {},
            error=error,
            steps=self.steps,
            digest=self._digest.value(),
            seconds=time.monotonic() - self._began,
        )
        self.final = record  # also where its put is cancelled, which does not keep it from arriving
        await self._put(encode_record(record), record)
        return record

    def require_open(self) -> None:
        """Raises RolloutOver once there is a finished record, or a step that could not be recorded."""
        self._require_unfinished()
        if self._lost is not None:
            raise RolloutOver(f"{self.identity.rollout} cannot go on: {self._lost}") from self._lost

    def _require_unfinished(self) -> None:
        if self._over:
            raise RolloutOver(
                f"{self.identity.rollout} has ended: a task that its environment left behind asks the model. "
                "Await or cancel what run() starts before it returns."
            )

    def next_header(self) -> Header:
        self.require_open()
        return self._numbered()

    def _numbered(self) -> Header:
        mine = self.identity
        header = Header(mine.run, mine.environment, mine.group, mine.rollout, mine.attempt, self._seq)
        self._seq += 1
        return header

    async def _put(self, frames: Frames, record: Record) -> None:
        try:
            await _to_the_end(self._queue.put(frames, key=record.header.group, tag=record.header.tag))
        except TimeoutError:
            raise QueueError(
                f"{self._queue.url}: {record.header.tag} was not accepted within {_PUT_TIMEOUT:g} s"
            ) from None
        self.bytes += sum(memoryview(frame).nbytes for frame in frames)


async def _to_the_end(put: Coroutine[Any, Any, None]) -> None:
    """Wait for a record, also where the caller is cancelled: a number that is missing would be a gap, and what the
    trace holds, later turns build on.

    In a task of its own, for the environment may cancel a turn in any way and more than once: a scope of anyio's is
    shielded against by a scope, `asyncio.wait_for` only so.
    """
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        putting = asyncio.ensure_future(_in_time(put))
        while not putting.done():
            try:
                await asyncio.wait([putting])
            except asyncio.CancelledError as error:
                cancelled = error
        putting.result()
    if cancelled is not None:
        raise cancelled


async def _in_time(put: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(_PUT_TIMEOUT):
        await put
