"""A worker in this process: attempts and retries, halting, draining, admission."""

from pathlib import Path

import anyio
import pytest

from rollout.config.load import Config
from rollout.engine.errors import EngineUnreachable
from rollout.environments.base import Model, Score
from rollout.records.task import Task
from rollout.rundir.claims import AttemptHistory
from rollout.session.session import PolicyClient
from rollout.worker.worker import WorkerHalted
from tests.unit.worker.harness import QUESTION, ScriptedEnvironment, play_one_task, play_one_turn, worker_harness


async def test_an_order_is_acked_once_its_rollout_is_done(config: Config, policy: PolicyClient, tmp_path: Path) -> None:
    async with worker_harness(config, policy, tmp_path, play_one_turn) as harness, anyio.create_task_group() as group:
        group.start_soon(harness.worker.run)
        await harness.put_orders(3, group_size=2)
        ended = await harness.receive_ended(6)
        await harness.wait_until_acked()
        harness.worker.drain()
        assert {trajectory.status for trajectory in ended.values()} == {"ok"}
        assert all(harness.claims.is_done(rollout) for rollout in ended)
        assert harness.worker.totals.rollouts == 6


async def test_a_failed_infrastructure_is_followed_by_a_fresh_attempt(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def second_time_lucky(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 1:
            await model.chat(list(QUESTION))
            raise EngineUnreachable("gone")
        return await play_one_turn(task, model)

    ended = await play_one_task(config, policy, tmp_path, second_time_lucky)
    assert (ended["0.0"].status, ended["0.0"].attempt, ScriptedEnvironment.runs_started) == ("ok", 2, 2)


async def test_an_attempt_after_one_whose_worker_died_is_counted_as_a_retry(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async with worker_harness(config, policy, tmp_path, play_one_turn) as harness, anyio.create_task_group() as group:
        harness.claims.claim_next_attempt("0.0")  # and then its worker was killed
        harness.claims.mark_returned(harness.claims.claim_next_attempt("1.0"))
        group.start_soon(harness.worker.run)
        await harness.put_orders(3)
        await harness.receive_ended(3)
        await harness.wait_until_acked()
        harness.worker.drain()
    assert {outcome.rollout: outcome.retries for outcome in harness.claims.new_outcomes(set())} == {
        "0.0": 1,
        "1.0": 0,
        "2.0": 0,
    }
    assert harness.worker.totals.retries == 1


async def test_a_bug_of_the_environment_is_not_tried_again(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def buggy(*_: object) -> Score:
        raise ValueError("as ever")

    ended = await play_one_task(config, policy, tmp_path, buggy)
    assert (ended["0.0"].status, ended["0.0"].error, ScriptedEnvironment.runs_started) == (
        "failed",
        {"type": "ValueError", "message": "as ever"},
        1,
    )


async def test_attempts_end_with_one_failed_record(config: Config, policy: PolicyClient, tmp_path: Path) -> None:
    async def unlucky(*_: object) -> Score:
        raise ExceptionGroup("two turns at once", [EngineUnreachable("gone")])

    ended = await play_one_task(config, policy, tmp_path, unlucky)
    assert (ended["0.0"].status, ended["0.0"].attempt, ScriptedEnvironment.runs_started) == ("failed", 3, 3)
    assert ended["0.0"].error == {"type": "EngineUnreachable", "message": "gone"}


async def test_a_rollout_whose_workers_died_too_often_is_failed_unplayed(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async with worker_harness(config, policy, tmp_path, play_one_turn) as harness, anyio.create_task_group() as group:
        for _ in range(3):
            harness.claims.claim_next_attempt("0.0")
        group.start_soon(harness.worker.run)
        await harness.put_orders(1)
        ended = await harness.receive_ended(1)
        await harness.wait_until_acked()
        harness.worker.drain()
    error = ended["0.0"].error
    assert error is not None
    assert (ended["0.0"].status, ended["0.0"].attempt, error["type"]) == ("failed", 4, "AttemptsExhausted")
    assert ScriptedEnvironment.runs_started == 0


async def test_what_may_have_killed_two_workers_is_played_alone(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    playing, played_beside = set[str](), dict[str, set[str]]()
    all_playing, go_on = anyio.Event(), anyio.Event()

    async def counted(task: Task, model: Model) -> Score:
        playing.add(task.id)
        for task_id in playing:
            played_beside.setdefault(task_id, set()).update(playing - {task_id})
        if len(playing) == 4:
            all_playing.set()
        await go_on.wait()
        await anyio.sleep(0.02)
        playing.remove(task.id)
        return await play_one_turn(task, model)

    async with worker_harness(config, policy, tmp_path, counted) as harness, anyio.create_task_group() as group:
        for rollout in ("0.0", "1.0", "2.0"):
            for _ in range(2):
                claim = harness.claims.claim_next_attempt(rollout)
                if rollout == "2.0":
                    harness.claims.mark_failed(claim)
        group.start_soon(harness.worker.run)
        await harness.put_orders(4, first=2)
        with anyio.fail_after(20):
            await all_playing.wait()
        await harness.put_orders(2)  # while the others play, and come back only when they are told to
        go_on.set()
        ended = await harness.receive_ended(6)
        harness.worker.drain()
    assert {trajectory.status for trajectory in ended.values()} == {"ok"}
    assert played_beside == {
        "0": set(),
        "1": set(),
        "2": {"3", "4", "5"},
        "3": {"2", "4", "5"},
        "4": {"2", "3", "5"},
        "5": {"2", "3", "4"},
    }


async def test_a_rollout_that_is_done_is_only_acked(config: Config, policy: PolicyClient, tmp_path: Path) -> None:
    async with worker_harness(config, policy, tmp_path, play_one_turn) as harness, anyio.create_task_group() as group:
        group.start_soon(harness.worker.run)
        await harness.put_orders(1)
        await harness.receive_ended(1)
        await harness.wait_until_acked()
        await harness.put_orders(1)
        await harness.wait_until_acked()
        harness.worker.drain()
    assert ScriptedEnvironment.runs_started == 1


async def test_failures_in_a_row_halt_the_worker_and_burn_no_attempt(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def gone(*_: object) -> Score:
        raise EngineUnreachable("no answer from the engine")

    async with worker_harness(config, policy, tmp_path, gone, halt_after=2, concurrency=1) as harness:
        await harness.put_orders(4)
        message = r"the infrastructure failed 2 times in a row \(worker.halt_after\)\. .* no answer from the engine"
        with pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesExc(WorkerHalted, match=message))):
            await harness.worker.run()
        assert (await harness.tasks.stats()).backlog_records == 4
        assert harness.worker.totals.rollouts == 0
        # The one that halted it was handed back; the one before it was a failure as any other.
        assert harness.claims.attempt_history("0.0") == AttemptHistory(attempts_used=1, unreported_attempts=0)


async def test_a_drained_worker_finishes_what_it_began_and_takes_nothing_more(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    go, began = anyio.Event(), anyio.Event()

    async def waits(task: Task, model: Model) -> Score:
        began.set()
        await go.wait()
        return await play_one_turn(task, model)

    async with worker_harness(config, policy, tmp_path, waits, concurrency=2) as harness:
        await harness.put_orders(5)
        async with anyio.create_task_group() as group:
            group.start_soon(harness.worker.run)
            await began.wait()
            await anyio.sleep(0.05)
            harness.worker.drain()
            go.set()
        assert harness.worker.totals.rollouts == 2
        assert len(await harness.receive_ended(2)) == 2
        assert (await harness.tasks.stats()).backlog_records == 3


async def test_what_a_cancelled_worker_had_begun_is_handed_back(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    began = anyio.Event()

    async def endless(*_: object) -> Score:
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with worker_harness(config, policy, tmp_path, endless) as harness:
        await harness.put_orders(1)
        async with anyio.create_task_group() as group:
            group.start_soon(harness.worker.run)
            await began.wait()
            group.cancel_scope.cancel()
        assert harness.claims.attempt_history("0.0") == AttemptHistory(0, 0)
        assert harness.claims.claim_next_attempt("0.0").attempt_number == 2
        assert (await harness.tasks.stats()).backlog_records == 1
        await harness.worker.abandon_interrupted()
        assert (await harness.receive_ended(1))["0.0"].status == "abandoned"


async def test_rollouts_wait_while_those_in_flight_hold_many_tokens(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    go, holding, began = anyio.Event(), anyio.Event(), 0

    async def holds(task: Task, model: Model) -> Score:
        nonlocal began
        began += 1
        await play_one_turn(task, model)
        holding.set()
        await go.wait()
        return Score(1.0)

    async with (
        worker_harness(config, policy, tmp_path, holds, tokens_in_flight=1) as harness,
        anyio.create_task_group() as group,
    ):
        await harness.put_orders(5)
        group.start_soon(harness.worker.run)
        with anyio.fail_after(20):
            await holding.wait()
        await anyio.sleep(0.5)
        assert began == 1
        go.set()
        assert len(await harness.receive_ended(5)) == 5
        harness.worker.drain()


async def test_a_turn_says_with_which_versions_it_began_and_ended(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def overtaken(task: Task, model: Model) -> Score:
        await play_one_turn(task, model)
        policy.version.current = "7"
        return await play_one_turn(task, model)

    trajectory = (await play_one_task(config, policy, tmp_path, overtaken))["0.0"]
    assert trajectory.started is not None
    assert trajectory.started.policy_version == "0"
    assert [step.policy for step in trajectory.steps] == [("0", "0"), ("7", "7")]


async def test_a_record_that_is_no_order_becomes_a_dead_letter(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async with worker_harness(config, policy, tmp_path, play_one_turn) as harness, anyio.create_task_group() as group:
        await harness.tasks.put((b"nonsense",), key="k")
        group.start_soon(harness.worker.run)
        await harness.wait_until_acked()
        harness.worker.drain()
        assert (await harness.tasks.stats()).dead_letters == 1
