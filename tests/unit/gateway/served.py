"""Plays the programs of tests at a real endpoint over HTTP, with an engine that a test can hold and stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from renderers_adapter.pool import shared_pool
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.config.gateway import GatewayConfig
from rollout.engine.client import EngineClient
from rollout.environments.endpoint import Endpoint, RootRule
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.records.kinds import Record, Step
from rollout.records.stream import RolloutStream
from rollout.serving.embedded import TINY_MODEL, EmbeddedSettings, ScriptedEngine
from rollout.serving.engine import Answer, Job
from rollout.serving.gate import PauseGate
from rollout.serving.policies import AnswerSlot, Pixels
from rollout.serving.protocol import GenerateBody
from rollout.serving.server import EngineServer
from rollout.session.policy import PolicyClient
from rollout.testing import Played, play
from rollout.trainer import Trajectory, samples
from tests.unit.gateway.raw_client import close_clients
from transports import Frames

_WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("ab", "eg", "il", "om", "ur")]

Program = Callable[[Endpoint], Awaitable[None]]


class Words:
    """A policy that says some random words, so that no two answers are the same."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return a slot for each word; see `ScriptedPolicy.answer`."""
        return [AnswerSlot({f"{before}{word}": 0.0 for word in _WORDS}) for before in ("", *" " * 5)]


class HeldEngine(ScriptedEngine):
    """An engine that answers only while it is not held.

    Attributes:
        is_held: whether it holds its answers back.
        latency: returns the seconds before an answer.
        started: the number of answers that it began.
        aborted: the number of answers that were aborted while it held them.
        is_stuck: whether it does not even answer that it aborts a request; only while it holds an answer.
    """

    def __init__(self, settings: EmbeddedSettings) -> None:
        super().__init__(settings)
        self.is_held = False
        self.latency: Callable[[], float] = lambda: 0.0
        self.started = 0
        self.aborted = 0
        self.is_stuck = False

    def prepare(self, request: GenerateBody) -> Job:
        """See `Engine.prepare`."""
        job = super().prepare(request)
        return _HeldJob(job.prompt, job.stop_conditions, job, self)


@dataclass(frozen=True, slots=True)
class _HeldJob(Job):
    job: Job
    engine: HeldEngine

    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        self.engine.started += 1
        try:
            await asyncio.sleep(self.engine.latency())
            while self.engine.is_held:
                while self.engine.is_stuck:
                    time.sleep(0.005)  # noqa: ASYNC251 - the loop of the engine must not run
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.engine.aborted += 1
            raise
        await self.job.generate(answer, gate)


class ProgramEnvironment(Environment):
    """Opens an endpoint for a program, and scores 1.

    Attributes:
        error: the error of the program itself; None if there was none.
    """

    def __init__(self, program: Program, rule: RootRule | None = None) -> None:
        super().__init__(EnvironmentSettings())
        self._program = program
        self._rule = rule
        self.error: Exception | None = None

    async def run(self, task: Task, model: Model) -> Score:
        """See `Environment.run`."""
        async with model.endpoint(root_kinds=self._rule) as endpoint:
            try:
                await self._program(endpoint)
            except Exception as error:
                self.error = error
                raise
        return Score(1.0)


@dataclass
class Served:
    """An engine with a gateway.

    Attributes:
        engine: the engine.
        policy: the policy of the engine.
        port: the port of the engine.
        server: its server.
    """

    engine: HeldEngine
    policy: PolicyClient
    port: int
    server: EngineServer

    async def play_beside(self, client: Program, rule: RootRule | None = None) -> Played:
        """Play a rollout whose environment waits for a client that runs beside it, so that it is not cancelled."""
        opened: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()

        async def program(endpoint: Endpoint) -> None:
            opened.set_result(endpoint)
            await ended.wait()

        playing = asyncio.ensure_future(self.play(program, rule))
        either: list[asyncio.Future[Any]] = [playing, opened]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        try:
            await client(opened.result())
        finally:
            ended.set()
            played = await playing
        return played

    async def play(self, program: Program, rule: RootRule | None = None) -> Played:
        """Play a rollout in which a program uses an endpoint. An error of the program is raised."""
        environment = ProgramEnvironment(program, rule)
        played = await play(environment, policy=self.policy)
        if environment.error is not None:
            raise environment.error
        return played

    def restart_engine(self) -> None:
        """Start the engine again at its port, after its server was stopped."""
        self.server = EngineServer(self.engine, weight_version="0", port=self.port)
        self.server.start()


class HeldQueue:
    """Holds steps on their way to the queue, after they were committed.

    Attributes:
        may_pass: set when they may pass.
        steps: the number of steps that came.
        passed: the number of steps that passed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_pass = asyncio.Event()
        self.steps = 0
        self.passed = 0
        put = RolloutStream._put

        async def put_later(stream: RolloutStream, frames: Frames, record: Record) -> None:
            if isinstance(record, Step):
                self.steps += 1
                await self.may_pass.wait()
            await put(stream, frames, record)
            self.passed += isinstance(record, Step)

        monkeypatch.setattr(RolloutStream, "_put", put_later)


@asynccontextmanager
async def serve(
    directory: Path,
    gateway: GatewayConfig | None = None,
    *,
    max_model_len: int = 32768,
    engine_timeout: float = 120.0,
    retries: int = 5,
) -> AsyncIterator[Served]:
    """Start an engine whose policy says random words, and a gateway."""
    renderers = await anyio.to_thread.run_sync(shared_pool, TINY_MODEL, "qwen3-vl")
    policy_name = f"{Words.__module__}:{Words.__name__}"
    settings = EmbeddedSettings(policy=policy_name, allowed_directories=(directory,), max_model_len=max_model_len)
    engine = HeldEngine(settings)
    server = EngineServer(engine, weight_version="0")
    url = server.start()
    served: Served | None = None
    try:
        async with (
            EngineClient([url], settings.model_name, timeout=engine_timeout, retries=retries) as client,
            Gateway(gateway or GatewayConfig(), model=settings.model_name, metrics=WorkerMetrics("")) as opened,
        ):
            await client.check()
            policy = PolicyClient(
                renderers,
                client,
                ImagePolicy("offload", directory),
                {"temperature": 1.0},
                open_endpoint=opened.open_endpoint,
            )
            served = Served(engine, policy, int(url.rpartition(":")[2]), server)
            try:
                yield served
            finally:
                close_clients()
    finally:
        engine.is_held = engine.is_stuck = False
        (server if served is None else served.server).stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - other threads change it, too
            await asyncio.sleep(0.005)


def trained_turns(trajectory: Trajectory) -> list[int]:
    """Return the turns that train, once for each sample that trains them."""
    return sorted(turn for sample in samples(trajectory) for turn in set(sample.turn_index[sample.mask].tolist()))
