"""Launches whose rollouts misbehave, and launches that are killed, drained, interrupted and resumed."""

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from rollout.launch.state import WaitedFor
from rollout.records.task import Task
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.tasks.orders import RolloutOrder, encode_order
from tests.faults.launched import LaunchHarness, LaunchProcess, worker_logs
from transports import open_queue

MISBEHAVING = Path(__file__).parent / "misbehaving.yaml"
LONG: dict[str, object] = {"tasks.does": "[behaves]", "tasks.group_size": 1, "engine.embedded.latency_ms": 300}


def test_a_rollout_that_misbehaves_fails_alone_with_its_own_error(world: LaunchHarness) -> None:
    expected = {
        "raises": "ValueError",
        "hangs": "RolloutTimeout",
        "hangs_in_a_thread": "RolloutTimeout",
        "will_not_end": "RolloutTimeout",
        "holds": "EventLoopHeld",
        "holds_our_code": "EventLoopHeld",
        "answers_nonsense": "ScoreError",
        "answers_nan": "ScoreError",
        "raises_half_a_pair": "ValueError",
        "answers_a_huge_number": "ScoreError",
        "leaves_as_a_generator": "GeneratorExit",
        "cancels_its_task": "RuntimeError",
        "sends_a_graph": "MessageError",
        "prints": "OutputFlood",
        "forks": "ForkRefused",
        "exits": "SystemExit",
        "exits_in_a_task": "ExitRefused",
        "cancels": "RuntimeError",
        "dies": "AttemptsExhausted",
    }
    does = [
        "behaves",
        "writes",
        "leaves_a_task",
        "names_half_a_pair",
        *(word for bad in expected for word in (bad, "behaves")),
    ]
    launched = world.launch(
        MISBEHAVING,
        {
            "tasks.does": f"[{','.join(does)}]",
            "tasks.count": len(does),
            "tasks.group_size": 1,
            "worker.rollout_timeout": 25,  # longer than all rollouts together hold the loop of one worker
            "worker.block_timeout": 4,
        },
        "--workers=2",
    )
    report = launched.report(seconds=120)
    assert report["rollouts"] == len(does)
    assert report["status"] == {"ok": len(does) - len(expected), "failed": len(expected)}
    run_dir = Path(report["run_dir"])
    ended = {}
    for path in (run_dir / "claims" / "misbehaving").glob("*.done"):
        outcome = json.loads(path.read_text())
        if outcome["error"] is not None:
            ended[outcome["group"].partition("-")[2]] = outcome["error"]["type"]
    assert ended == expected
    assert report["metrics"] == {r"\ud83d": 1.0}
    assert sum(path.stat().st_size for path in run_dir.glob("workers/*.out")) < 48 << 20
    print(f"\n{len(expected)} of {len(does)} rollouts misbehaved, each failed alone; {report['deaths']} workers died")


def test_rollouts_do_not_fail_because_another_one_kills_their_worker(world: LaunchHarness) -> None:
    settings = {"tasks.does": "[dies,behaves,behaves,behaves]", "tasks.count": 16, "tasks.group_size": 1}
    launched = world.launch(MISBEHAVING, {**settings, "worker.restarts": 50}, "--workers=2")
    report = launched.report(seconds=120)
    print(f"\n4 of 16 rollouts killed {report['deaths']} workers: {report['status']}")
    assert report["status"] == {"ok": 12, "failed": 4}
    assert report["deaths"] <= 4 * 3


def test_a_blocked_event_loop_is_not_a_dead_worker(world: LaunchHarness) -> None:
    launched = world.launch(
        MISBEHAVING,
        {
            "environment.block": 20,
            "tasks.does": "[blocks,behaves,behaves,behaves]",
            "tasks.count": 8,
            "tasks.group_size": 1,
        },
    )
    report = launched.report(seconds=120)
    assert (report["status"], report["deaths"], report["retries"]) == ({"ok": 8}, 0, 0)
    assert report["seconds"] > 40
    assert all(path.name.endswith((".1", ".done")) for path in Path(report["run_dir"]).glob("claims/misbehaving/*"))


def test_a_worker_that_is_stuck_in_our_own_code_ends_and_reports_where(world: LaunchHarness) -> None:
    launched = world.launch(
        MISBEHAVING,
        {
            "tasks.does": "[behaves,holds_a_queue,behaves,behaves]",
            "tasks.count": 8,
            "tasks.group_size": 1,
            "worker.block_timeout": 2,
            "worker.max_attempts": 1,
            "worker.concurrency": 1,
        },
        "--workers=2",
    )
    report = launched.report(seconds=120)
    assert report["status"] == {"ok": 6, "failed": 2}
    (error,) = report["errors"]
    assert error["type"] == "AttemptsExhausted"
    reasons = [entry["reason"] for entry in launched.log() if entry["event"] == "worker died"]
    assert len(reasons) == 2
    assert all(reason.startswith("transports.files (<string>, line 2), which works for one") for reason in reasons)


def test_a_launch_ends_and_names_the_output_file_that_cannot_be_opened(world: LaunchHarness) -> None:
    launched = world.launch(MISBEHAVING, LONG | {"tasks.count": 200}, "--workers=1")
    launched.wait_until(lambda: len(launched.live_workers()) == 1)
    launched.process.send_signal(signal.SIGTERM)
    run_dir = Path(launched.report(seconds=60)["run_dir"])
    (output_path,) = run_dir.glob("workers/*.out")
    output_path.unlink()
    output_path.mkdir()
    resumed = world.resume(run_dir, {"worker.restarts": 1}, "--workers=1")
    assert (
        f"the process of misbehaving-0 could not start: {output_path}: Is a directory"
        in resumed.report(code=1, seconds=60)["error"]
    )


def test_a_run_in_one_process_obeys_sigterm_while_a_rollout_holds_its_event_loop(world: LaunchHarness) -> None:
    settings = {
        "tasks.does": "[behaves,holds]",
        "tasks.count": 2,
        "tasks.group_size": 1,
        "worker.block_timeout": 1000,
    }
    started = world.run(MISBEHAVING, settings)
    started.wait_until(lambda: bool(list(started.runs.glob("*/claims/misbehaving/001-holds*"))))
    time.sleep(2.0)
    started.process.send_signal(signal.SIGTERM)
    report = started.report(code=130, seconds=30)
    assert (report["rollouts"], report["status"]["failed"]) == (2, 1)
    assert [error["type"] for error in report["errors"] if error["status"] == "failed"] == ["EventLoopHeld"]


def test_workers_and_their_child_processes_die_with_their_supervisor(world: LaunchHarness) -> None:
    settings = LONG | {
        "tasks.count": 400,
        "tasks.does": "[leaves_a_process,behaves]",
        "environment.marker": world.directory,
    }
    launched = world.launch(MISBEHAVING, {**settings, "worker.concurrency": 4}, "--workers=2")
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and len(world.leftover_processes()) > 6)
    launched.process.kill()
    launched.process.wait()
    deadline = time.monotonic() + 5.0
    while (left := world.leftover_processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_a_killed_launch_is_resumed_without_repeating_what_is_done(world: LaunchHarness) -> None:
    settings = LONG | {
        "tasks.count": 40,
        "worker.concurrency": 4,
        "queue.tasks": f"file://{world.directory}/t?lease_time=1",
    }
    launched = world.launch(MISBEHAVING, settings, "--workers=2")
    launched.wait_until(lambda: len(launched.done()) >= 10)
    launched.process.kill()
    launched.process.wait()
    run_dir = launched.run_dir
    assert run_dir is not None
    stamps = {path: path.stat().st_mtime_ns for path in launched.done()}
    assert 10 <= len(stamps) < 40
    resumed = world.resume(run_dir, {}, "--workers=2")
    assert resumed.report(seconds=60)["status"] == {"ok": 40}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    attempts = Counter(
        path.name.rpartition(".")[0] for path in run_dir.glob("claims/misbehaving/*") if path.name[-1].isdigit()
    )
    assert all(attempts[path.stem] == 1 for path in stamps)


def test_sigterm_drains_and_nothing_is_played_twice(world: LaunchHarness) -> None:
    launched = world.launch(MISBEHAVING, LONG | {"tasks.count": 200, "worker.concurrency": 4}, "--workers=2")
    launched.wait_until(lambda: len(launched.done()) >= 6)
    launched.process.send_signal(signal.SIGTERM)
    report = launched.report(seconds=30)
    assert set(report["status"]) == {"ok"}
    assert 6 <= report["rollouts"] < 200
    claims = Path(report["run_dir"]) / "claims" / "misbehaving"
    started = {path.name.rpartition(".")[0] for path in claims.iterdir() if path.name.endswith(".1")}
    assert started == {path.name.rpartition(".")[0] for path in claims.glob("*.done")}
    assert list(claims.glob("*.returned")) == list(claims.glob("*.2")) == []
    assert world.leftover_processes() == []


def test_rollouts_that_are_not_done_after_the_grace_are_returned(world: LaunchHarness) -> None:
    settings = {"tasks.does": "[behaves,hangs]", "tasks.count": 8, "tasks.group_size": 1, "worker.grace": 1}
    launched = world.launch(MISBEHAVING, settings, "--workers=2")
    launched.wait_until(lambda: len(launched.done()) == 4)
    launched.process.send_signal(signal.SIGTERM)
    report = launched.report(seconds=30)
    assert (report["status"], report["deaths"]) == ({"ok": 4}, 0)
    claims = Path(report["run_dir"]) / "claims" / "misbehaving"
    assert len(list(claims.glob("*.returned"))) == 4
    assert world.leftover_processes() == world.temporary_files() == []


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(world: LaunchHarness) -> None:
    settings = {"tasks.does": "[behaves,hangs]", "tasks.count": 8, "tasks.group_size": 1, "worker.rollout_timeout": 600}
    launched = world.launch(MISBEHAVING, settings, "--workers=2")
    launched.wait_until(lambda: len(launched.done()) == 4)
    launched.process.send_signal(signal.SIGINT)
    launched.wait_until(lambda: any(entry["event"] == "worker drains" for entry in worker_logs(launched)))
    launched.process.send_signal(signal.SIGINT)
    report = launched.report(code=130, seconds=10)
    assert report["status"] == {"ok": 4}
    assert world.leftover_processes() == []
    resumed = world.resume(Path(report["run_dir"]), {"worker.rollout_timeout": 1})
    assert resumed.report(seconds=60)["status"] == {"ok": 4, "failed": 4}


def test_a_blocked_terminal_does_not_hide_the_death_of_a_worker(world: LaunchHarness) -> None:
    ours, theirs = os.openpty()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:  # fill the terminal, as happens some time after Ctrl-S
            os.write(theirs, b"x" * 256)
    os.set_blocking(theirs, True)
    settings = LONG | {"tasks.count": 60, "worker.concurrency": 4}
    launched = world.launch(MISBEHAVING, settings, "--workers=2", stderr=theirs)
    os.close(theirs)
    launched.wait_until(lambda: len(launched.live_workers()) == 2)
    killed = launched.live_workers()[0]
    os.kill(killed, signal.SIGKILL)
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and killed in launched.ended)
    launched.wait_until(lambda: (launched.run_dir or Path()).joinpath("ended").exists())
    shown = threading.Thread(target=_read_terminal, args=(ours,))
    shown.start()
    report = launched.report(seconds=30)
    shown.join()
    assert (report["status"], report["deaths"]) == ({"ok": 60}, 1)


def _waits_for(waited_for: WaitedFor, launched: LaunchProcess) -> bool:
    return any(line.get("waited_for") == waited_for.value for line in launched.log())


def test_a_launch_that_waits_for_its_orders_ends_at_once_on_ctrl_c(world: LaunchHarness) -> None:
    url = f"file://{world.directory}/orders"
    settings = {"tasks.does": "[behaves]", "tasks.count": 4, "tasks.group_size": 1, "queue.tasks": url}
    first_launch = world.launch(MISBEHAVING, settings)
    run_dir = Path(first_launch.report(seconds=60)["run_dir"])

    async def hold_queue() -> None:
        async with open_queue(url, lease="record") as tasks:
            await tasks.put(encode_order(RolloutOrder(Task("somebody's", 0, seed=0), 0, 1)), key="somebody's")
            assert await tasks.receive(timeout=10) is not None
            resumed = world.resume(run_dir, {})
            await asyncio.to_thread(resumed.wait_until, lambda: _waits_for(WaitedFor.EARLIER_ORDERS, resumed))
            resumed.process.send_signal(signal.SIGINT)
            report = await asyncio.to_thread(partial(resumed.report, code=130, seconds=30))
            assert (report["status"], report["total"]) == ({"ok": 4}, 4)

    asyncio.run(hold_queue())


def test_orders_that_others_put_are_played_until_the_launch_is_stopped(world: LaunchHarness) -> None:
    url = f"file://{world.directory}/orders"
    launched = world.launch(MISBEHAVING, {"tasks.source": "queue", "queue.tasks": url}, "--workers=2")

    async def put(first: int, count: int) -> None:
        async with open_queue(url, lease="record") as tasks:
            for index in range(first, first + count):
                order = RolloutOrder(Task(f"mine-{index}", index, seed=index, data={"does": "behaves"}), 0, 1)
                await tasks.put(encode_order(order), key=order.rollout_id, tag=order.rollout_id)

    asyncio.run(put(0, 6))
    launched.wait_until(lambda: len(launched.done()) == 6)
    asyncio.run(put(6, 6))
    launched.wait_until(lambda: len(launched.done()) == 12)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.report(seconds=30)["status"] == {"ok": 12}


def test_a_second_launch_on_the_same_directory_is_refused(world: LaunchHarness) -> None:
    launched = world.launch(MISBEHAVING, LONG | {"tasks.count": 200, "worker.concurrency": 2})
    launched.wait_until(lambda: bool(launched.live_workers()))
    assert launched.run_dir is not None
    second = world.resume(launched.run_dir, {})
    _, err = second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert "works in this directory" in err
    assert "Traceback" not in err
    launched.process.send_signal(signal.SIGTERM)
    launched.process.communicate(timeout=30)


def test_workers_without_an_engine_halt_and_claim_no_rollout(world: LaunchHarness) -> None:
    settings = LONG | {
        "tasks.count": 4,
        "engine.urls": "['http://127.0.0.1:9']",
        "engine.timeout": 1,
        "worker.restarts": 1,
    }
    launched = world.launch(MISBEHAVING, settings)
    out, err = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    assert "no answer from the engine at http://127.0.0.1:9" in err
    assert "Traceback" not in err
    assert "no answer from the engine at http://127.0.0.1:9" in json.loads(out)["error"]
    assert list(launched.runs.glob("*/claims/misbehaving/*")) == []


def test_a_launch_that_loses_its_engine_says_so_and_continues_with_another(world: LaunchHarness) -> None:
    engine = EmbeddedSettings(allowed_directories=(world.directory,), latency_ms=200)
    with EmbeddedServer(engine) as url:
        settings = {"tasks.does": "[behaves]", "tasks.count": 60, "tasks.group_size": 1, "engine.urls": f"['{url}']"}
        few = {"engine.timeout": 1, "worker.concurrency": 4, "worker.restarts": 1}
        launched = world.launch(MISBEHAVING, settings | few)
        launched.wait_until(lambda: len(launched.done()) >= 10)
    report = launched.report(code=1, seconds=60)
    assert report["error"].startswith("the workers of misbehaving died more times than worker.restarts allows: ")
    assert f"no answer from the engine at {url}" in report["error"]
    assert set(report["status"]) == {"ok"}
    assert 10 <= report["rollouts"] < 60
    (halted, *_) = [entry for entry in worker_logs(launched) if entry["event"] == "worker ends"]
    # At least three: more rollouts in flight may fail before the first one returns its claim.
    assert re.search(
        r"the infrastructure failed [3-9] times in a row \(worker.halt_after\). The last failure: ", halted["exception"]
    )
    with EmbeddedServer(engine) as url:
        resumed = world.resume(Path(report["run_dir"]), {"engine.urls": f"['{url}']"})
        assert resumed.report(seconds=60)["status"] == {"ok": 60}


def _read_terminal(terminal: int) -> None:
    """Read all output from a terminal until the other side closes it."""
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass
    os.close(terminal)
