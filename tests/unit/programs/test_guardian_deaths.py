"""Nothing of a program stays when its worker, its guardian, or both are killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rollout.programs import process
from rollout.programs.cgroups import ControlGroup, find_groups, find_place
from rollout.programs.leftovers import remove_abandoned
from rollout.programs.process import GuardianLost, run_program
from rollout.programs.workspace import Workspace
from tests.procfs import is_alive
from tests.unit.programs.running import (
    HIDE,
    Programs,
    can_limit,
    find_by_argument,
    find_children,
    find_guardians,
    kill,
    new_mark,
    wait_for_file,
    wait_until_true,
)

WORKER = """
import asyncio, os, sys
from pathlib import Path
from rollout.programs import process
from rollout.programs.workspace import Workspace

if sys.argv[1] == "without cgroups":
    process._place = lambda: None
workspace = Workspace.create()
Path("root").write_text(str(workspace.root))
limits = process.ProgramLimits(seconds=600, output_bytes=1 << 20)
environ = {**os.environ, **workspace.environ(), **workspace.mark}
asyncio.run(process.run_program(process.ProgramProcess(
    tuple(sys.argv[2:]), environ, Path.cwd(), workspace, Path("output.txt").absolute(), limits,
    cleanup=(("/bin/sh", "-c", "touch cleaned"),),
)))
"""
LEAVE_DAEMON = HIDE.replace("sys.exit(int(sys.argv[2]))", "open(sys.argv[2], 'w'); signal.pause()")
"""A program that leaves a hidden daemon, makes a file, and runs on. Arguments: the seconds of the daemon, the file."""


class Worker:
    """A process that runs one program, and can be killed."""

    def __init__(self, directory: Path, machine: str, *argv: str) -> None:
        self.directory = directory
        environ = {**os.environ, "TMPDIR": str(directory / "temporary")}
        (directory / "temporary").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, machine, *argv], cwd=directory, env=environ, start_new_session=True
        )
        wait_until_true((directory / "ready").exists)
        self.root = Path((directory / "root").read_text())
        (self.guardian,) = find_guardians(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_worker(tmp_path: Path, machine: str) -> Iterator[Callable[..., Worker]]:
    workers = []

    def start(*argv: str) -> Worker:
        workers.append(Worker(tmp_path, machine, *argv))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def test_everything_ends_and_is_removed_when_the_worker_is_killed(start_worker: Callable[..., Worker]) -> None:
    mark = new_mark()
    worker = start_worker(sys.executable, "-c", LEAVE_DAEMON, mark, "ready")
    wait_until_true(lambda: find_by_argument(mark))
    worker.kill()
    wait_until_true(lambda: not is_alive(worker.guardian))
    assert find_by_argument(mark) == []
    assert not worker.root.exists()
    assert find_groups(worker.root.name) == []
    assert (worker.directory / "cleaned").exists()


async def test_a_killed_guardian_is_an_error_and_nothing_is_left(programs: Programs, machine: str) -> None:
    script = f"setsid sleep {programs.mark} & sleep {programs.mark} & wait"
    done = programs.workspace.work / "cleaned"
    running = asyncio.create_task(programs.shell(script, cleanup=(("touch", str(done)),)))
    await programs.wait_for_sleepers(2)
    (guardian,) = find_guardians(os.getpid())
    kill(guardian)
    with pytest.raises(GuardianLost, match="/bin/sh"):
        await running
    programs.assert_nothing_left()
    assert done.exists()


async def test_a_process_without_environment_and_guardian_is_found_by_its_cgroup(programs: Programs) -> None:
    if not can_limit("pids"):
        pytest.skip("this process may not make cgroups here")
    ready = programs.workspace.work / "ready"
    running = asyncio.create_task(programs.python(LEAVE_DAEMON, programs.mark, str(ready)))
    await wait_for_file(ready)
    (guardian,) = find_guardians(os.getpid())
    kill(guardian)
    with pytest.raises(GuardianLost):
        await running
    programs.assert_nothing_left()


async def test_a_process_without_environment_and_guardian_is_found_by_its_session(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_place", lambda: None)
    running = asyncio.create_task(programs.shell(f"env -i sleep {programs.mark} & touch ready; wait"))
    await wait_for_file(programs.workspace.work / "ready")
    (guardian,) = find_guardians(os.getpid())
    kill(guardian)
    with pytest.raises(GuardianLost):
        await running
    programs.assert_nothing_left()


async def test_a_program_that_kills_its_guardian_is_an_error(programs: Programs, machine: str) -> None:
    with pytest.raises(GuardianLost):
        await programs.shell(f"setsid sleep {programs.mark} & kill -KILL $PPID; sleep {programs.mark}")
    programs.assert_nothing_left()


async def test_a_guardian_that_is_killed_while_the_call_is_cancelled_leaves_nothing(programs: Programs) -> None:
    running = asyncio.create_task(programs.shell(f"trap '' TERM; setsid sleep {programs.mark} & touch ready; wait"))
    await wait_for_file(programs.workspace.work / "ready")
    (guardian,) = find_guardians(os.getpid())
    running.cancel()
    await asyncio.sleep(0.1)
    kill(guardian)
    with pytest.raises(asyncio.CancelledError):
        await running
    programs.assert_nothing_left()


def test_the_next_worker_removes_what_a_killed_worker_and_its_killed_guardian_left(
    start_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = new_mark()
    worker = start_worker("/bin/sh", "-c", f"setsid sleep {mark} & touch ready; wait")
    wait_until_true(lambda: find_by_argument(mark))
    (program,) = find_children(worker.guardian)
    os.kill(worker.guardian, signal.SIGSTOP)  # so that it does nothing until it is killed
    worker.kill()
    monkeypatch.setattr("tempfile.tempdir", str(worker.root.parent))
    assert remove_abandoned() == 0, "the guardian is responsible as long as it lives"
    kill(worker.guardian)
    wait_until_true(lambda: not is_alive(worker.guardian) and not is_alive(program))
    assert find_by_argument(mark)
    assert remove_abandoned() == 1
    assert find_by_argument(mark) == []
    assert not worker.root.exists()
    assert find_groups(worker.root.name) == []


async def test_the_workspace_of_a_running_program_is_not_abandoned(programs: Programs) -> None:
    running = asyncio.create_task(run_program(programs.process("sleep", programs.mark)))
    await programs.wait_for_sleepers(1)
    assert remove_abandoned() == 0
    assert all(map(is_alive, programs.sleepers()))
    assert programs.workspace.work.exists()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_an_abandoned_workspace_is_removed_and_a_strange_one_is_not(temporary_directory: Path) -> None:
    abandoned = Workspace.create()
    abandoned.lock.close()
    used = Workspace.create()
    (temporary_directory / "rollout-program-link").symlink_to(used.root)
    (temporary_directory / "rollout-program-file").touch()
    foreign = temporary_directory / "rollout-program-foreign"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
    assert remove_abandoned() == (1 if os.geteuid() == 0 else 2)
    assert not abandoned.root.exists()
    assert used.work.exists()
    assert os.geteuid() != 0 or foreign.exists()
    used.remove()


BOMB = "import os\nopen('ready', 'w')\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"


def test_a_fork_bomb_without_a_limit_of_its_own_is_ended(tmp_path: Path) -> None:
    """The worker is in a cgroup with 300 processes, so that the bomb is no danger for the machine."""
    place = find_place()
    if place is None or "pids" not in place[1]:
        pytest.skip("no cgroup can limit processes here")
    group = ControlGroup(place, f"rollout-test-{new_mark()}")
    group.create(None, 300)
    join = "import os, sys; open(sys.argv[1], 'w').write('0'); os.execv(sys.argv[2], sys.argv[2:])"
    procs = f"{place[1]['pids']}/{group.name}/cgroup.procs"
    (tmp_path / "temporary").mkdir()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            join,
            procs,
            *(sys.executable, "-c", WORKER),
            "without cgroups",
            sys.executable,
            "-c",
            BOMB,
        ],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    try:
        wait_until_true((tmp_path / "ready").exists)
        (guardian,) = find_guardians(worker.pid)
        worker.kill()
        worker.wait()
        wait_until_true(lambda: not is_alive(guardian))
        assert group.pids() == set()
    finally:
        group.refuse_processes()
        while group.pids():
            for pid in group.pids():
                kill(pid)
        group.remove()
