"""The resources that `shared` of an environment opens while rollouts are played."""

import asyncio
import io
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import anyio
import pytest
from structlog.testing import capture_logs

from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, SharedResourcesMissing
from rollout.records.task import Task
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.worker import containment, resources
from rollout.worker.containment import LimitedOutput, LoopWatchdog
from rollout.worker.resources import SharedResourcesFailed, open_shared_resources

SETTINGS = EnvironmentSettings()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_START_TIMEOUT", 0.2)
    monkeypatch.setattr(resources, "_CLOSE_TIMEOUT", 0.2)
    monkeypatch.setattr(resources, "_CANCELLED_TIMEOUT", 0.1)


class Plays(Environment):
    events: ClassVar[list[object]]

    async def run(self, task: Task, model: Model) -> Score:
        self.events.append(self.shared_resources)
        return Score(1.0)

    async def close(self) -> None:
        self.events.append(f"closed with {self.shared_resources}")


class SharesAPool(Plays):
    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: EnvironmentSettings) -> AsyncIterator[str]:
        cls.events = [settings]
        yield "a pool"
        cls.events.append("left")


async def test_shared_resources_are_open_while_rollouts_are_played(policy: PolicyClient) -> None:
    trajectory = (await play(SharesAPool(SETTINGS), Task(id="0", index=0, seed=0), policy=policy)).trajectory
    assert trajectory.status == "ok"
    assert SharesAPool.events == [SETTINGS, "a pool", "closed with a pool", "left"]


async def test_by_default_nothing_is_shared(policy: PolicyClient) -> None:
    class Alone(Plays):
        events: ClassVar[list[object]] = []

    await play(Alone(SETTINGS), Task(id="0", index=0, seed=0), policy=policy)
    assert Alone.events == [None, "closed with None"]


def test_shared_resources_cannot_be_used_in_init() -> None:
    class Early(Plays):
        def __init__(self, settings: EnvironmentSettings) -> None:
            super().__init__(settings)
            self.pool = self.shared_resources

    with pytest.raises(SharedResourcesMissing, match=r"Early\.shared_resources is not set yet; use it in `run`"):
        Early(SETTINGS)


async def raises(cls: Any, settings: object) -> AsyncIterator[str]:
    raise ConnectionRefusedError("no sandboxes")
    yield ""


async def exits(cls: Any, settings: object) -> AsyncIterator[str]:
    sys.exit(3)
    yield ""


async def never_yields(cls: Any, settings: object) -> AsyncIterator[str]:
    if settings is None:
        yield ""


async def hangs(cls: Any, settings: object) -> AsyncIterator[str]:
    await anyio.sleep_forever()
    yield ""


async def hangs_stubbornly(cls: Any, settings: object) -> AsyncIterator[str]:
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
    yield ""


def sharing(shared: Any) -> type[Environment]:
    return type("Coin", (Plays,), {"shared": classmethod(asynccontextmanager(shared))})


async def play_with(shared: Any, meanwhile: Callable[[Any], object]) -> None:
    """Keep the shared resources open until the task is cancelled."""
    async with open_shared_resources(sharing(shared), SETTINGS) as shared_resources:
        meanwhile(shared_resources)
        await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("shared", "what"),
    [
        (raises, "ended before it yielded: .*ConnectionRefusedError: no sandboxes"),
        (exits, "ended before it yielded: .*SystemExit: 3"),
        (never_yields, "ended before it yielded: .*generator didn't yield"),
        (hangs, r"did not yield within 0\.2 s; no rollout can be played without its resources\."),
        (hangs_stubbornly, r"did not yield within 0\.2 s"),
    ],
    ids=["raises", "exits", "never yields", "hangs", "hangs stubbornly"],
)
async def test_a_shared_that_cannot_start_is_reported_with_its_line(shared: Any, what: str) -> None:
    line = shared.__code__.co_firstlineno
    with pytest.raises(SharedResourcesFailed, match=rf"(?s)^Coin\.shared \({__file__}, line {line}\) {what}"):
        async with open_shared_resources(sharing(shared), SETTINGS):
            raise AssertionError


async def test_a_shared_without_its_decorator_is_reported() -> None:
    bare = type("Coin", (Plays,), {"shared": classmethod(raises)})
    with pytest.raises(SharedResourcesFailed, match="write `@classmethod` and `@asynccontextmanager` above it"):
        async with open_shared_resources(bare, SETTINGS):
            raise AssertionError


@pytest.mark.parametrize("group", ["anyio", "asyncio"])
async def test_shared_resources_that_fail_end_the_rollouts(group: str) -> None:
    async def breaks() -> None:
        await go.wait()
        raise ConnectionResetError("the pool died")

    async def shared(cls: Any, settings: object) -> AsyncIterator[str]:
        if group == "anyio":
            async with anyio.create_task_group() as anyio_group:
                anyio_group.start_soon(breaks)
                yield ""
        else:
            async with asyncio.TaskGroup() as asyncio_group:
                asyncio_group.create_task(breaks())
                yield ""

    go = anyio.Event()
    with capture_logs() as logs, pytest.raises(SharedResourcesFailed, match=r"(?s)were played: .*the pool died"):
        await play_with(shared, lambda _: go.set())
    assert logs == []


async def test_shared_resources_that_end_by_themselves_end_the_rollouts() -> None:
    async def shared(cls: Any, settings: object) -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as scope:
            yield scope

    with pytest.raises(SharedResourcesFailed, match="ended while rollouts were played: it raised nothing"):
        await play_with(shared, lambda scope: scope.cancel())


async def raises_at_the_end(cls: Any, settings: object) -> AsyncIterator[str]:
    yield ""
    raise ConnectionResetError("no answer")


async def hangs_at_the_end(cls: Any, settings: object) -> AsyncIterator[str]:
    yield ""
    await anyio.sleep_forever()


async def stays_at_the_end(cls: Any, settings: object) -> AsyncIterator[str]:
    yield ""
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("shared", "event"),
    [
        (raises_at_the_end, "closing the shared resources failed"),
        (hangs_at_the_end, "closing the shared resources took too long"),
        (stays_at_the_end, "the shared resources ignore their cancellation and still run"),
    ],
    ids=["raises", "hangs", "stays"],
)
async def test_an_error_while_shared_resources_close_is_logged(shared: Any, event: str) -> None:
    with capture_logs() as logs:
        async with open_shared_resources(sharing(shared), SETTINGS):
            pass
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [(event, "warning")]
    assert logs[0]["of"].startswith("Coin.shared (")


async def test_shared_resources_are_closed_when_the_worker_is_cancelled() -> None:
    async def shared(cls: Any, settings: object) -> AsyncIterator[str]:
        try:
            yield ""
        finally:
            await asyncio.sleep(0.01)
            events.append("left")

    events: list[str] = []
    with anyio.CancelScope() as scope:
        async with open_shared_resources(sharing(shared), SETTINGS):
            scope.cancel()
            await anyio.sleep_forever()
    assert events == ["left"]


async def test_an_error_of_the_worker_is_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_shared_resources(SharesAPool, SETTINGS):
            raise ZeroDivisionError
    assert SharesAPool.events == [SETTINGS, "left"]


async def test_a_shared_that_blocks_the_loop_is_interrupted_and_may_print_without_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def shared(cls: Any, settings: object) -> AsyncIterator[str]:
        for _ in range(17):
            output.write("x" * (1 << 20))
        time.sleep(60)  # noqa: ASYNC251 - it blocks the loop
        yield ""

    monkeypatch.setattr(containment, "_CHECK_INTERVAL", 0.1)
    output = LimitedOutput(io.StringIO())
    with LoopWatchdog(0.05), pytest.raises(SharedResourcesFailed, match="EventLoopHeld"):
        await play_with(shared, str)
