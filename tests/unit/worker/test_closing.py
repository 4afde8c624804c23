"""`close` of an environment is called once after each attempt, and does not change how the rollout ended."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar

import anyio
import pytest
from structlog.testing import capture_logs

from rollout.config.load import Config
from rollout.engine.errors import EngineUnreachable
from rollout.environments.base import ContextExhausted, Model, Retry, Score
from rollout.records.stream import RolloutAlreadyFinished
from rollout.records.task import Task
from rollout.rundir.claims import Claims
from rollout.trainer import check
from rollout.worker import closing, containment, running, worker
from rollout.worker.containment import LoopWatchdog
from tests.unit.worker.harness import QUESTION, ScriptedEnvironment, WorkerFactory, play_one_turn


class Closes(ScriptedEnvironment):
    """Records each instance and each call of `close`, which then calls a function of the test."""

    made: ClassVar[list["Closes"]]
    closed: ClassVar[list["Closes"]]
    in_close: ClassVar[Callable[["Closes"], Any]]

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        Closes.made.append(self)

    def close(self) -> Awaitable[None] | None:
        Closes.closed.append(self)
        returned: Awaitable[None] | None = Closes.in_close(self)
        return returned


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    Closes.made, Closes.closed, Closes.in_close = [], [], lambda _: None
    monkeypatch.setattr(worker, "_RETRY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(running, "_CLEANUP_TIMEOUT", 0.1)
    monkeypatch.setattr(closing, "_CLOSE_TIMEOUT", 0.2)
    monkeypatch.setattr(closing, "_CANCELLED_CLOSE_TIMEOUT", 0.1)


@pytest.fixture
def config(config: Config) -> Config:
    return replace(config, environment_class=Closes)


async def hold_on(event: anyio.Event) -> None:
    """Wait for an event, and ignore cancellations."""
    while not event.is_set():
        with suppress(asyncio.CancelledError):
            await event.wait()


async def scores(*_: object) -> Score:
    return Score(1.0)


async def raises(*_: object) -> Score:
    raise ValueError("a bug")


async def asks_again(*_: object) -> Score:
    raise Retry("flaky")


async def loses_its_engine(*_: object) -> Score:
    raise EngineUnreachable("gone")


async def fills_the_context(*_: object) -> Score:
    raise ContextExhausted("full")


async def hangs(*_: object) -> Score:
    await anyio.sleep_forever()
    raise AssertionError


async def cancels_its_task(*_: object) -> Score:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return Score(1.0)


async def raises_beside_its_cancellation(*_: object) -> Score:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    raise ValueError("a bug")


async def exits(*_: object) -> Score:
    sys.exit(3)


@pytest.mark.parametrize(
    ("play", "status", "error", "attempts"),
    [
        (scores, "ok", None, 1),
        (raises, "failed", "ValueError", 1),
        (asks_again, "failed", "Retry", 3),
        (loses_its_engine, "failed", "EngineUnreachable", 3),
        (fills_the_context, "unscored", "ContextExhausted", 1),
        (hangs, "failed", "RolloutTimeout", 1),
        (cancels_its_task, "failed", "RuntimeError", 1),
        (raises_beside_its_cancellation, "failed", "ValueError", 1),
        (exits, "failed", "SystemExit", 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_an_environment_is_closed_once_however_its_attempt_ends(
    workers: WorkerFactory, play: Any, status: str, error: str | None, attempts: int
) -> None:
    async def closes(_: Closes) -> None:
        await asyncio.sleep(0)
        fully_closed.append(None)

    fully_closed: list[None] = []
    Closes.in_close = closes
    ended = (await workers.play_one_task(play, rollout_timeout=0.1 if play is hangs else 60.0))["0.0"]
    assert (ended.status, ended.error and ended.error["type"]) == (status, error)
    assert len(Closes.made) == attempts
    assert Closes.closed == Closes.made
    assert len(fully_closed) == attempts
    assert check(ended) == []


async def test_an_environment_is_closed_before_the_next_attempt_begins(workers: WorkerFactory) -> None:
    open_count: list[int] = []

    async def fail_once(*_: object) -> Score:
        open_count.append(len(Closes.made) - len(Closes.closed))
        if len(Closes.made) == 1:
            raise Retry("flaky")
        return Score(1.0)

    await workers.play_one_task(fail_once)
    assert open_count == [1, 1]


async def test_an_environment_is_closed_when_its_worker_is_cancelled(workers: WorkerFactory) -> None:
    began = anyio.Event()

    async def hang(*_: object) -> Score:
        began.set()
        return await hangs()

    async with workers.open(hang) as harness:
        await harness.put_orders(1)
        async with anyio.create_task_group() as group:
            group.start_soon(harness.worker.run)
            await began.wait()
            group.cancel_scope.cancel()
    assert len(Closes.closed) == 1


async def test_an_environment_that_ignores_its_cancellation_is_closed_once(workers: WorkerFactory) -> None:
    go = anyio.Event()
    stubborn_tasks: list[asyncio.Task[Any] | None] = []

    async def stubborn(*_: object) -> Score:
        stubborn_tasks.append(asyncio.current_task())
        await hold_on(go)
        return Score(1.0)

    error = (await workers.play_one_task(stubborn, rollout_timeout=0.1))["0.0"].error
    assert error is not None
    assert error["type"] == "RolloutTimeout"
    assert len(Closes.closed) == 1
    go.set()
    assert stubborn_tasks[0] is not None
    await stubborn_tasks[0]
    assert len(Closes.closed) == 1


async def test_an_environment_that_cannot_be_made_is_not_closed(
    workers: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Closes, "__init__", lambda *_: 1 / 0)
    ended = await workers.play_one_task(scores)
    assert ended["0.0"].status == "failed"
    assert Closes.closed == []


async def hangs_in_close(_: Closes) -> None:
    await anyio.sleep_forever()


async def exits_in_close(_: Closes) -> None:
    sys.exit(3)


async def cancels_in_close(_: Closes) -> None:
    raise asyncio.CancelledError


async def asks_again_in_close(_: Closes) -> None:
    raise Retry("too late")


async def yields_in_close(_: Closes) -> Any:
    yield None


async def forgets_await_in_close(_: Closes) -> Any:
    return hangs()


FAILED, TOOK_TOO_LONG = "close of the environment failed", "close of the environment took too long"


@pytest.mark.parametrize("play", [scores, raises], ids=["scores", "raises"])
@pytest.mark.parametrize(
    ("in_close", "event", "logged_text"),
    [
        (lambda _: 1 / 0, FAILED, "ZeroDivisionError"),
        (hangs_in_close, TOOK_TOO_LONG, "in hangs_in_close"),
        (exits_in_close, FAILED, "SystemExit: 3"),
        (cancels_in_close, FAILED, "in cancels_in_close"),
        (asks_again_in_close, FAILED, "Retry: too late"),
        (yields_in_close, FAILED, "returned an async_generator; it must return nothing."),
        (forgets_await_in_close, FAILED, "write `await` before hangs(…)"),
        (lambda _: "closed", FAILED, f"{__name__.rpartition('.')[2]}.py, line "),
    ],
    ids=["raises", "hangs", "exits", "cancels", "retry", "yields", "forgets await", "returns"],
)
async def test_a_close_that_fails_is_logged_and_changes_nothing(
    workers: WorkerFactory, play: Any, in_close: Callable[[Closes], Any], event: str, logged_text: str
) -> None:
    Closes.in_close = in_close
    with capture_logs() as logs:
        ended = (await workers.play_one_task(play))["0.0"]
    assert ended.status == ("ok" if play is scores else "failed")
    assert ended.error == (None if play is scores else {"type": "ValueError", "message": "a bug"})
    (logged,) = [entry for entry in logs if entry["event"].startswith("close of")]
    assert (logged["event"], logged["log_level"]) == (event, "warning")
    assert logged_text in logged["exception"]
    assert len(Closes.closed) == 1
    assert [outcome.close_failed for outcome in Claims(workers.directory / "claims").new_outcomes(set())] == [True]


async def test_a_close_that_ignores_its_cancellation_is_left_behind(workers: WorkerFactory) -> None:
    go, left = anyio.Event(), anyio.Event()

    async def stubborn(_: Closes) -> None:
        await hold_on(go)
        left.set()

    Closes.in_close = stubborn
    with capture_logs() as logs:
        ended = (await workers.play_one_task(scores))["0.0"]
    assert ended.status == "ok"
    assert "close of the environment ignores its cancellation and still runs" in [e["event"] for e in logs]
    go.set()
    await left.wait()


async def test_a_rollout_whose_time_ends_during_close_keeps_its_score(workers: WorkerFactory) -> None:
    async def closes(_: Closes) -> None:
        await anyio.sleep(0.15)

    Closes.in_close = closes
    ended = await workers.play_one_task(scores, rollout_timeout=0.05)
    assert ended["0.0"].status == "ok"


async def test_close_has_the_task_and_the_context_of_the_run(workers: WorkerFactory) -> None:
    """So `close` can leave a task group that `reset` entered."""
    variable = ContextVar("variable", default=0)
    groups: list[anyio.abc.TaskGroup] = []
    found: list[int] = []

    async def opens(task: Task, model: Model) -> Score:
        variable.set(7)
        groups.append(await anyio.create_task_group().__aenter__())
        groups[0].start_soon(anyio.sleep_forever)
        raise ValueError("a bug")

    async def closes(_: Closes) -> None:
        found.append(variable.get())
        groups[0].cancel_scope.cancel()
        await groups[0].__aexit__(None, None, None)

    Closes.in_close = closes
    with capture_logs() as logs:
        ended = (await workers.play_one_task(opens))["0.0"]
    assert ended.error == {"type": "ValueError", "message": "a bug"}
    assert [entry["event"] for entry in logs if entry["event"].startswith("close of")] == []
    assert found == [7]


async def test_close_cannot_ask_the_model(workers: WorkerFactory) -> None:
    models: list[Model] = []

    async def plays(task: Task, model: Model) -> Score:
        models.append(model)
        return await play_one_turn(task, model)

    async def asks(_: Closes) -> None:
        with pytest.raises(RolloutAlreadyFinished, match=r"0\.0 cannot continue: its environment is being closed"):
            await models[0].chat(list(QUESTION))
        refused.append(None)

    refused: list[None] = []
    Closes.in_close = asks
    ended = (await workers.play_one_task(plays))["0.0"]
    assert (len(ended.steps), len(refused)) == (1, 1)
    assert check(ended) == []


async def test_a_close_that_blocks_the_loop_is_interrupted(
    workers: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containment, "_CHECK_INTERVAL", 0.1)
    Closes.in_close = lambda _: time.sleep(60)
    with capture_logs() as logs, LoopWatchdog(0.2):
        ended = (await workers.play_one_task(scores))["0.0"]
    assert ended.status == "ok"
    (logged,) = [entry for entry in logs if entry["event"] == FAILED]
    assert "EventLoopHeld: this environment blocked the event loop, and so all rollouts" in logged["exception"]
