"""A program ends with all its processes: at its limits, when it is cancelled, and whatever it does against it."""

import asyncio
import sys
from contextlib import suppress

import pytest

from rollout.programs.process import EndReason, run_program
from tests.unit.programs.running import HIDE, Programs, can_limit, wait_for_file

IGNORE_SIGTERM = 'trap "" TERM; touch ready; while :; do sleep 0.1; done'
NEEDS_PIDS = pytest.mark.skipif(not can_limit("pids"), reason="no cgroup can limit processes here")
NEEDS_MEMORY = pytest.mark.skipif(not can_limit("memory"), reason="no cgroup can limit memory here")


async def test_a_program_is_asked_to_end_at_its_timeout(programs: Programs) -> None:
    end = await programs.shell('trap "echo asked; exit 5" TERM; touch ready; while :; do sleep 0.05; done', seconds=1.5)
    assert (end.reason, end.exit_code) == (EndReason.TIMEOUT, 5)
    assert programs.printed().endswith("asked\n")
    programs.assert_nothing_left()


async def test_a_program_that_ignores_sigterm_is_killed(programs: Programs) -> None:
    end = await programs.shell(IGNORE_SIGTERM, seconds=1.5)
    assert (end.reason, end.exit_code) == (EndReason.TIMEOUT, -9)
    programs.assert_nothing_left()


async def test_a_stopped_program_is_killed(programs: Programs) -> None:
    end = await programs.shell("kill -STOP $$", seconds=0.5)
    assert (end.reason, end.exit_code) == (EndReason.TIMEOUT, -9)


async def test_a_daemon_that_hides_in_every_way_ends_with_its_program(programs: Programs, machine: str) -> None:
    end = await programs.python(HIDE, programs.mark, "6")
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 6)
    programs.assert_nothing_left()


async def test_a_child_that_holds_the_output_open_does_not_delay_the_end(programs: Programs, machine: str) -> None:
    end = await programs.shell(f"sleep {programs.mark} & echo last")
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 0)
    assert programs.printed() == "last\n"
    programs.assert_nothing_left()


async def test_a_program_that_closes_its_output_runs_on(programs: Programs) -> None:
    end = await programs.shell("exec >&- 2>&-; sleep 0.2; touch done")
    assert end.exit_code == 0
    assert (programs.workspace.work / "done").exists()


async def test_a_program_that_prints_too_much_is_ended(programs: Programs) -> None:
    end = await programs.shell(f"sleep {programs.mark} & yes", output_bytes=100_000)
    assert end.reason is EndReason.OUTPUT
    assert end.output_bytes > 100_000
    programs.assert_nothing_left()


async def test_a_program_that_ends_by_itself_with_too_much_output_has_that_reason(programs: Programs) -> None:
    end = await programs.shell("echo 12345", output_bytes=5)
    assert end.reason is EndReason.OUTPUT


@NEEDS_PIDS
async def test_a_fork_bomb_is_limited_and_its_neighbour_is_unharmed(programs: Programs) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    neighbour = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import subprocess, time\nfor _ in range(40): subprocess.run(['true'], check=True); time.sleep(0.05)",
    )
    end = await programs.python(bomb, processes=64, seconds=1.5)
    assert end.reason is EndReason.TIMEOUT
    assert end.refused_processes
    assert await neighbour.wait() == 0
    programs.assert_nothing_left()


@NEEDS_PIDS
async def test_a_program_within_its_limit_of_processes_was_not_refused_one(programs: Programs) -> None:
    forks = "while :; do (:) & (:) & wait; done"
    end = await programs.shell(f"({forks}) & ({forks}) & ({forks}) & sleep 0.5", processes=32)
    assert (end.reason, end.refused_processes) == (EndReason.EXITED, False)


@NEEDS_MEMORY
async def test_a_program_that_needs_too_much_memory_has_that_reason(programs: Programs) -> None:
    end = await programs.python("bytearray(1 << 30)", memory_bytes=64 << 20)
    assert end.reason is EndReason.MEMORY
    programs.assert_nothing_left()


@NEEDS_MEMORY
async def test_the_memory_of_all_processes_together_is_limited(programs: Programs) -> None:
    code = (
        "import os, time\nfor _ in range(4):\n  if not os.fork():\n    x = b'x' * (30 << 20); time.sleep(60)\nos.wait()"
    )
    end = await programs.python(code, memory_bytes=64 << 20, seconds=30)
    assert end.reason is EndReason.MEMORY


async def test_a_cancelled_call_returns_when_nothing_is_left(programs: Programs, machine: str) -> None:
    running = asyncio.create_task(programs.shell(f"sleep {programs.mark} & {IGNORE_SIGTERM}"))
    await wait_for_file(programs.workspace.work / "ready")
    await programs.wait_for_sleepers(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    programs.assert_nothing_left()


async def test_a_call_that_is_cancelled_again_and_again_returns_when_nothing_is_left(programs: Programs) -> None:
    running = asyncio.create_task(programs.shell(f"sleep {programs.mark} & {IGNORE_SIGTERM}"))
    await wait_for_file(programs.workspace.work / "ready")
    while not running.done():
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as a loop does at its end
            task.cancel()
        await asyncio.sleep(0.4)
    assert running.cancelled()
    programs.assert_nothing_left()


async def test_a_call_can_be_cancelled_at_any_time(programs: Programs) -> None:
    for milliseconds in range(0, 120, 8):
        running = asyncio.create_task(programs.shell(f"sleep {programs.mark}", stdin="x" * 200_000))
        await asyncio.sleep(milliseconds / 1000)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        programs.assert_nothing_left()


def test_the_end_of_the_event_loop_leaves_nothing(programs: Programs) -> None:
    async def leave_running() -> None:
        running = asyncio.create_task(run_program(programs.process("sleep", programs.mark)))
        await programs.wait_for_sleepers(1)
        assert not running.done()

    asyncio.run(leave_running())
    programs.assert_nothing_left()
