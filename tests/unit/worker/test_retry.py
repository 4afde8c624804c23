"""An environment that raises `Retry` gets another attempt, at most `worker.max_attempts` in all."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from rollout.environments.base import Model, Reply, Retry, Score
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.records.messages import Message
from rollout.records.task import Task
from rollout.trainer import check
from rollout.worker import worker
from tests.unit.worker.harness import QUESTION, ScriptedEnvironment, WorkerFactory, play_one_turn


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_PAUSE_SECONDS", 0.0)


async def test_a_retry_is_followed_by_a_fresh_attempt_without_the_earlier_steps(workers: WorkerFactory) -> None:
    async def fail_once(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 1:
            await play_one_turn(task, model)
            await play_one_turn(task, model)
            raise Retry("the judge did not answer")
        return await play_one_turn(task, model)

    with capture_logs() as logs:
        async with workers.run(fail_once, halt_after=1) as harness:
            await harness.put_orders(1)
            ended = (await harness.receive_ended(1))["0.0"]
            await harness.wait_until_acked()
    assert (ended.status, ended.attempt, len(ended.steps)) == ("ok", 2, 1)
    assert check(ended) == []
    (outcome,) = harness.claims.new_outcomes(set())
    totals = harness.worker.totals
    assert (outcome.retries, outcome.turns, totals.retries, totals.turns) == (1, 1, 1, 1)
    assert outcome.retry_reason == totals.retry_reason == "the judge did not answer"
    (logged,) = [entry for entry in logs if entry["event"] == "the environment asks for another attempt"]
    assert (logged["rollout"], logged["attempt"], logged["reason"]) == ("0.0", 1, "the judge did not answer")


async def test_the_last_attempt_fails_with_its_reason_and_does_not_halt_the_worker(workers: WorkerFactory) -> None:
    async def flaky(*_: object) -> Score:
        raise Retry(f"sandbox {ScriptedEnvironment.runs_started} broke")

    ended = await workers.play_one_task(flaky, group_size=2, halt_after=1, concurrency=1)
    assert ended["0.0"].error == {"type": "Retry", "message": "sandbox 3 broke"}
    assert [(e.status, e.attempt, e.trainable) for e in ended.values()] == [("failed", 3, False)] * 2


@pytest.mark.parametrize(
    ("error", "attempts", "error_type"),
    [
        (ExceptionGroup("two tools", [Retry("a"), ExceptionGroup("inner", [Retry("b")])]), 3, "Retry"),
        (BaseExceptionGroup("a tool", [asyncio.CancelledError(), Retry("a")]), 3, "Retry"),
        (ExceptionGroup("a tool and a bug", [Retry("a"), ValueError("b")]), 1, "ExceptionGroup"),
    ],
    ids=["only retries", "beside a cancellation", "beside a bug"],
)
async def test_an_exception_group_asks_for_another_attempt_if_all_its_members_do(
    workers: WorkerFactory, error: BaseException, attempts: int, error_type: str
) -> None:
    async def flaky(*_: object) -> Score:
        raise error

    ended = (await workers.play_one_task(flaky))["0.0"]
    assert ended.error is not None
    assert (ended.status, ended.attempt, ended.error["type"]) == ("failed", attempts, error_type)


class FlakyGame(MultiTurnEnvironment):
    """Raises `Retry` in the first attempt, in the method that a test names."""

    flaky_in = ""
    made = 0

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        FlakyGame.made += 1
        self._raise_in("__init__")

    async def reset(self, task: Task) -> list[Message]:
        self._raise_in("reset")
        long = "word " * 40_000 if self.flaky_in == "truncated" and self.made == 1 else ""
        return [{"role": "user", "content": f"Heads or tails? {long}"}]

    async def step(self, reply: Reply) -> Turn:
        self._raise_in("step")
        return Turn(score=Score(1.0))

    async def truncated(self, conversation: list[Message]) -> Score | None:
        self._raise_in("truncated")
        return None

    def _raise_in(self, method: str) -> None:
        if (self.flaky_in, self.made) == (method, 1):
            raise Retry(f"flaky in {method}")


@pytest.mark.parametrize("method", ["__init__", "reset", "step", "truncated"])
async def test_every_method_can_ask_for_another_attempt(
    workers: WorkerFactory, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(FlakyGame, "flaky_in", method)
    monkeypatch.setattr(FlakyGame, "made", 0)
    workers = replace(workers, config=replace(workers.config, environment_class=FlakyGame))
    with capture_logs() as logs:
        ended = (await workers.play_one_task(None))["0.0"]
    assert (ended.status, ended.attempt) == ("ok", 2)
    assert [entry["reason"] for entry in logs if "reason" in entry] == [f"flaky in {method}"]


async def test_a_long_reason_is_cut_and_a_lone_surrogate_is_escaped(workers: WorkerFactory) -> None:
    async def flaky(task: Task, model: Model) -> Score:
        await model.chat(list(QUESTION))
        raise Retry("\ud83d" + "x" * 200_000)

    with capture_logs() as logs:
        ended = (await workers.play_one_task(flaky, max_attempts=2))["0.0"]
    reasons = [entry["reason"] for entry in logs if "reason" in entry]
    assert ended.error is not None
    assert [*reasons, ended.error["message"]] == [ended.error["message"]] * 3
    assert reasons[0].startswith(r"\ud83dxxx")
    assert len(reasons[0]) < 11_000
    assert check(ended) == []
