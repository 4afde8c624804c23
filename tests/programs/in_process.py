"""A rollout without a queue and without HTTP: a real session, an engine double, and the records that were sent."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from renderers_adapter.pool import RendererPool
from rollout.images import ImagePolicy
from rollout.records.endings import RolloutStatus
from rollout.records.kinds import RolloutFinished, RolloutStarted, Step
from rollout.records.stream import AttemptId, RolloutStream
from rollout.records.task import Task
from rollout.records.wire import decode_record
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from rollout.trainer import Trajectory
from rollout.trainer.trajectory import assemble
from tests.programs.engine_double import EngineDouble


class Sink:
    """Collects the records of a rollout in order, in place of a queue."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.bytes = 0

    async def put(self, frames: Any, *, key: str, tag: str = "") -> None:
        await asyncio.sleep(0)
        self.bytes += sum(memoryview(frame).nbytes for frame in frames)
        self.records.append(decode_record(frames))


class InProcessRollout:
    """One rollout, played turn by turn. `images` are those of the engine double."""

    def __init__(
        self,
        pool: RendererPool,
        directory: Path,
        images: Mapping[str, tuple[str, int]],
        mode: Literal["offload", "inline"] = "offload",
    ) -> None:
        self.pool = pool
        self.engine = EngineDouble(pool.pad_id, images)
        self.sink = Sink()
        queue: Any = self.sink
        self.stream = RolloutStream(queue, AttemptId("run", "Program", "g", "g.0", 0, 1, 1))
        policy = PolicyClient(pool, self.engine.client, ImagePolicy(mode, directory), {"temperature": 1.0})
        self.session = Session(policy, self.stream)

    @property
    def steps(self) -> list[Step]:
        """The records of the turns so far."""
        return [record for record in self.sink.records if isinstance(record, Step)]

    async def begin(self) -> None:
        geometry = self.pool.geometry
        await self.stream.put_started(
            Task("g", 0, 1),
            policy_version="0",
            config_digest="",
            model="double",
            pad_id=self.pool.pad_id,
            assets="",
            layout={"family": geometry.family, "fingerprint": geometry.fingerprint} if geometry else {},
        )

    async def finish(self) -> Trajectory:
        """Finish the rollout, and return the trajectory as a trainer reads it."""
        turn_rewards = {step.turn: step.turn + 0.5 for step in self.steps}
        await self.stream.put_finished(RolloutStatus.OK, reward=1.0, turn_rewards=turn_rewards)
        started, *_, finished = self.sink.records
        assert isinstance(started, RolloutStarted)
        assert isinstance(finished, RolloutFinished)
        assert [step.header.seq for step in self.steps] == list(range(1, finished.steps + 1))
        return assemble(started, self.steps, finished)
