"""No more programs run on one machine than there are slots, and a slot is free when the last process has left it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.programs.process import run_program
from rollout.programs.slots import SlotsUnusable, machine_slot
from rollout.programs.workspace import Workspace
from tests.unit.programs.running import Programs, number_of_programs

HOLD = """
import asyncio, sys
from rollout.programs.slots import machine_slot

async def hold():
    async with machine_slot(1):
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold())
"""


async def test_never_more_slots_are_taken_than_the_limit(temporary_directory: Path) -> None:
    taken = highest = 0

    async def use() -> None:
        nonlocal taken, highest
        async with machine_slot(3):
            taken += 1
            highest = max(highest, taken)
            await asyncio.sleep(0.01)
            taken -= 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(use() for _ in range(12)))
    assert highest == 3


async def test_another_process_holds_its_slot_until_it_is_killed(temporary_directory: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(temporary_directory)}
    other = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), machine_slot(1):
            pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    async with asyncio.timeout(60), machine_slot(1):
        pass


async def test_a_cancelled_wait_leaves_no_open_file(temporary_directory: Path) -> None:
    async with machine_slot(1):
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), machine_slot(1):
                pass
        assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
async def test_the_directory_of_another_user_is_refused(temporary_directory: Path) -> None:
    directory = temporary_directory / f"rollout-slots-{os.getuid()}"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    with pytest.raises(SlotsUnusable, match="rollout-slots"):
        async with machine_slot(1):
            pass


async def test_many_programs_at_once_all_end_within_the_limit(programs: Programs) -> None:
    count = number_of_programs(plain=40, ci=200)
    running = highest = 0

    async def run() -> int:
        nonlocal running, highest
        workspace = Workspace.create()
        mine = Programs(workspace, programs.mark, workspace.root / "output.txt")
        async with machine_slot(8):
            running += 1
            highest = max(highest, running)
            end = await run_program(mine.process("/bin/sh", "-c", f"sleep {programs.mark} & exit 3"))
            running -= 1
        workspace.remove()
        return end.exit_code

    assert await asyncio.gather(*(run() for _ in range(count))) == [3] * count
    assert highest == 8
    programs.assert_nothing_left()
