"""A worker in this process: attempts and retries, halting, draining, admission."""

import anyio
import pytest

from rollout.engine.errors import EngineUnreachable
from rollout.environments.base import Model, Score
from rollout.records.task import Task
from rollout.rundir.claims import AttemptHistory
from rollout.worker.worker import WorkerHalted
from tests.unit.worker.harness import QUESTION, ScriptedEnvironment, WorkerFactory, play_one_turn


async def test_an_order_is_acked_when_its_rollout_is_done(workers: WorkerFactory) -> None:
    async with workers.run(play_one_turn) as harness:
        await harness.put_orders(3, group_size=2)
        ended = await harness.receive_ended(6)
        await harness.wait_until_acked()
    assert {trajectory.status for trajectory in ended.values()} == {"ok"}
    assert all(harness.claims.is_done(rollout) for rollout in ended)
    assert harness.worker.totals.rollouts == 6


async def test_a_failure_of_the_infrastructure_is_followed_by_a_fresh_attempt(workers: WorkerFactory) -> None:
    async def fail_once(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 1:
            await model.chat(list(QUESTION))
            raise EngineUnreachable("gone")
        return await play_one_turn(task, model)

    ended = await workers.play_one_task(fail_once)
    assert (ended["0.0"].status, ended["0.0"].attempt, ScriptedEnvironment.runs_started) == ("ok", 2, 2)


async def test_an_attempt_after_one_whose_worker_died_is_counted_as_a_retry(workers: WorkerFactory) -> None:
    async with workers.run(play_one_turn) as harness:
        harness.claims.claim_next_attempt("0.0")  # and then its worker was killed
        harness.claims.mark_returned(harness.claims.claim_next_attempt("1.0"))
        await harness.put_orders(3)
        await harness.receive_ended(3)
        await harness.wait_until_acked()
    retries = {outcome.rollout: outcome.retries for outcome in harness.claims.new_outcomes(set())}
    assert retries == {"0.0": 1, "1.0": 0, "2.0": 0}
    assert harness.worker.totals.retries == 1


@pytest.mark.parametrize(
    ("error", "attempts", "recorded"),
    [
        (ValueError("a bug"), 1, {"type": "ValueError", "message": "a bug"}),
        (
            ExceptionGroup("two turns at once", [EngineUnreachable("gone")]),
            3,
            {"type": "EngineUnreachable", "message": "gone"},
        ),
    ],
    ids=["bug", "infrastructure"],
)
async def test_only_a_failure_of_the_infrastructure_is_tried_again_up_to_the_limit(
    workers: WorkerFactory, error: Exception, attempts: int, recorded: dict[str, str]
) -> None:
    async def fail(*_: object) -> Score:
        raise error

    ended = (await workers.play_one_task(fail))["0.0"]
    assert (ended.status, ended.attempt, ScriptedEnvironment.runs_started) == ("failed", attempts, attempts)
    assert ended.error == recorded


async def test_a_rollout_whose_workers_died_too_often_fails_and_is_not_played(workers: WorkerFactory) -> None:
    async with workers.run(play_one_turn) as harness:
        for _ in range(3):
            harness.claims.claim_next_attempt("0.0")
        await harness.put_orders(1)
        ended = (await harness.receive_ended(1))["0.0"]
        await harness.wait_until_acked()
    assert ended.error is not None
    assert (ended.status, ended.attempt, ended.error["type"]) == ("failed", 4, "AttemptsExhausted")
    assert ScriptedEnvironment.runs_started == 0


async def test_a_rollout_that_may_have_killed_two_workers_is_played_alone(workers: WorkerFactory) -> None:
    playing, played_beside = set[str](), dict[str, set[str]]()
    all_playing, go_on = anyio.Event(), anyio.Event()

    async def note_others(task: Task, model: Model) -> Score:
        playing.add(task.id)
        for task_id in playing:
            played_beside.setdefault(task_id, set()).update(playing - {task_id})
        if len(playing) == 4:
            all_playing.set()
        await go_on.wait()
        await anyio.sleep(0.02)
        playing.remove(task.id)
        return await play_one_turn(task, model)

    async with workers.run(note_others) as harness:
        for rollout in ("0.0", "1.0", "2.0"):
            for _ in range(2):
                claim = harness.claims.claim_next_attempt(rollout)
                if rollout == "2.0":
                    harness.claims.mark_failed(claim)
        await harness.put_orders(4, first=2)
        with anyio.fail_after(20):
            await all_playing.wait()
        await harness.put_orders(2)  # while the others play; they end only after go_on
        go_on.set()
        ended = await harness.receive_ended(6)
    assert {trajectory.status for trajectory in ended.values()} == {"ok"}
    together = {"2", "3", "4", "5"}
    assert played_beside == {"0": set(), "1": set(), **{task: together - {task} for task in together}}


async def test_a_rollout_that_is_done_is_only_acked(workers: WorkerFactory) -> None:
    async with workers.run(play_one_turn) as harness:
        await harness.put_orders(1)
        await harness.receive_ended(1)
        await harness.wait_until_acked()
        await harness.put_orders(1)
        await harness.wait_until_acked()
    assert ScriptedEnvironment.runs_started == 1


async def test_failures_in_a_row_halt_the_worker_and_use_up_no_attempt(workers: WorkerFactory) -> None:
    async def lose_engine(*_: object) -> Score:
        raise EngineUnreachable("no answer from the engine")

    async with workers.open(lose_engine, halt_after=2, concurrency=1) as harness:
        await harness.put_orders(4)
        message = r"the infrastructure failed 2 times in a row \(worker.halt_after\)\. .* no answer from the engine"
        with pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesExc(WorkerHalted, match=message))):
            await harness.worker.run()
        assert (await harness.tasks.stats()).backlog_records == 4
        assert harness.worker.totals.rollouts == 0
        # The attempt that halted the worker is given back; the one before it counts like any failure.
        assert harness.claims.attempt_history("0.0") == AttemptHistory(attempts_used=1, unreported_attempts=0)


async def test_a_drained_worker_finishes_what_it_plays_and_takes_no_more_orders(workers: WorkerFactory) -> None:
    go, began = anyio.Event(), anyio.Event()

    async def wait(task: Task, model: Model) -> Score:
        began.set()
        await go.wait()
        return await play_one_turn(task, model)

    async with workers.open(wait, concurrency=2) as harness:
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


async def test_a_cancelled_worker_gives_back_what_it_plays(workers: WorkerFactory) -> None:
    began = anyio.Event()

    async def hang(*_: object) -> Score:
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with workers.open(hang) as harness:
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


async def test_new_rollouts_wait_while_those_in_flight_hold_many_tokens(workers: WorkerFactory) -> None:
    go, holding, began = anyio.Event(), anyio.Event(), 0

    async def hold(task: Task, model: Model) -> Score:
        nonlocal began
        began += 1
        await play_one_turn(task, model)
        holding.set()
        await go.wait()
        return Score(1.0)

    async with workers.run(hold, tokens_in_flight=1) as harness:
        await harness.put_orders(5)
        with anyio.fail_after(20):
            await holding.wait()
        await anyio.sleep(0.5)
        assert began == 1
        go.set()
        assert len(await harness.receive_ended(5)) == 5


async def test_a_turn_records_the_versions_with_which_it_began_and_ended(workers: WorkerFactory) -> None:
    async def play_two_versions(task: Task, model: Model) -> Score:
        await play_one_turn(task, model)
        workers.policy.version.current = "7"
        return await play_one_turn(task, model)

    trajectory = (await workers.play_one_task(play_two_versions))["0.0"]
    assert trajectory.started is not None
    assert trajectory.started.policy_version == "0"
    assert [step.policy for step in trajectory.steps] == [("0", "0"), ("7", "7")]


async def test_a_record_that_is_not_an_order_becomes_a_dead_letter(workers: WorkerFactory) -> None:
    async with workers.run(play_one_turn) as harness:
        await harness.tasks.put((b"nonsense",), key="k")
        await harness.wait_until_acked()
        assert (await harness.tasks.stats()).dead_letters == 1
