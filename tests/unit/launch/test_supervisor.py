"""The supervisor of worker processes. Small scripts replace the workers."""

import errno
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from rollout.launch.local import LocalPlace
from rollout.launch.supervisor import RestartBudget, Supervisor, WorkersDie, WorkerSlot, WorkersUnusable
from rollout.worker.link import Heartbeat, WorkerFailure, WorkerInstructions, decode_report, encode_report
from tests.procfs import process_state
from transports import Queue, QueueError, open_queue
from transports.errors import QueueStorageError
from transports.memory import MemoryQueue

SCRIPT = """
import sys, time
from rollout.worker.link import Heartbeat, SupervisorLink, WorkerFailure

link = SupervisorLink(int(sys.argv[sys.argv.index("--supervisor-fd") + 1]))
instructions = link.wait_for_instructions()
versions = []
heartbeat = lambda: Heartbeat(ready=True, finished=1, lease_holder=" ".join(versions))
link.start_reporting(heartbeat, lambda news: versions.append(news.policy_version))
print("engines", *instructions.engine_urls, flush=True)
"""


class StuckQueue(MemoryQueue):
    """Expires leases only after `go_on`, or fails with `error`."""

    def __init__(self, error: QueueError | None = None) -> None:
        super().__init__("memory://stuck", lease="record", consume=None)
        self.error = error
        self.asked, self.released = 0, 0
        self.go_on = anyio.Event()

    async def expire_leases(self, holder: str) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        await self.go_on.wait()
        self.released += 1


def make_supervisor(
    directory: Path, then: str, *, restarts: int, workers: int = 1, tasks: Queue | None = None
) -> Supervisor:
    (directory / "worker.py").write_text(SCRIPT + then)
    budget = RestartBudget(restarts)
    tasks = tasks or open_queue(f"memory://{directory.name}", lease="record")
    slots = [
        WorkerSlot(
            name=f"scripted-{number}",
            environment="scripted",
            command=(sys.executable, str(directory / "worker.py")),
            output_path=directory / f"{number}.out",
            tasks_queue=tasks,
            grace_seconds=5.0,
            restart_budget=budget,
        )
        for number in range(workers)
    ]
    return Supervisor(
        slots, lambda environment: WorkerInstructions((f"http://engine/{environment}",), "4"), LocalPlace()
    )


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    """Run a supervisor, for at most 30 seconds."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            yield


async def run_until_workers_die(supervisor: Supervisor, message: str) -> None:
    with anyio.fail_after(30), pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match=message)):
        await supervisor.run()


async def wait_until(holds: Callable[[], bool], between: Callable[[], None] = lambda: None) -> None:
    while not holds():
        between()
        await anyio.sleep(0.02)


def all_ready(supervisor: Supervisor) -> bool:
    return all(slot.heartbeat.ready for slot in supervisor.slots)


def pid_of(slot: WorkerSlot) -> int:
    assert slot.process is not None
    return slot.process.pid


async def test_dead_workers_are_replaced_until_the_budget_is_spent(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "link.close(WorkerFailure('the disk is full')); sys.exit(3)", restarts=2)
    await run_until_workers_die(supervisor, "scripted died more times than worker.restarts allows: the disk is full")
    assert [(death.worker, death.exit_code, death.reason) for death in supervisor.deaths] == [
        ("scripted-0", 3, "the disk is full")
    ] * 3
    assert (tmp_path / "0.out").read_text() == "engines http://engine/scripted\n" * 3


MISCONFIGURED = "link.close(WorkerFailure('install the compass', is_configuration=True)); sys.exit(2)"


async def test_workers_that_cannot_start_because_of_the_configuration_are_not_restarted(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "", restarts=8)
    (tmp_path / "worker.py").write_text(SCRIPT.replace("ready=True", "ready=False") + MISCONFIGURED)
    expected = pytest.RaisesExc(WorkersUnusable, match="workers of scripted cannot start: install the compass")
    with anyio.fail_after(30), pytest.RaisesGroup(expected):
        await supervisor.run()
    assert [death.exit_code for death in supervisor.deaths] == [2]


async def test_an_error_of_the_configuration_after_workers_were_ready_is_tried_again(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, MISCONFIGURED, restarts=1)
    await run_until_workers_die(supervisor, "died more times than worker.restarts allows: install the compass")
    assert len(supervisor.deaths) == 2


async def test_a_worker_whose_output_file_cannot_be_opened_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "0.out").mkdir()
    supervisor = make_supervisor(tmp_path, "raise AssertionError", restarts=0)
    await run_until_workers_die(supervisor, rf"scripted-0 could not start: {tmp_path}/0\.out: Is a directory")
    assert [death.exit_code for death in supervisor.deaths] == [1]


async def test_a_worker_is_not_started_without_free_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    supervisor = make_supervisor(tmp_path, "raise AssertionError", restarts=0)
    monkeypatch.setattr("rollout.launch.local.socket.socketpair", fail)
    await run_until_workers_die(supervisor, "scripted-0 could not start: Too many open files")


async def test_a_death_is_noticed_while_a_child_of_the_worker_holds_its_output(tmp_path: Path) -> None:
    then = """
import os, subprocess
child = subprocess.Popen(["sleep", "600"])
print("child", child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    supervisor = make_supervisor(tmp_path, then, restarts=0)
    await run_until_workers_die(supervisor, "signal SIGKILL")
    child = int((tmp_path / "0.out").read_text().split()[-1])
    assert process_state(child) in (None, "Z")


async def test_a_queue_that_does_not_expire_leases_delays_no_restart(tmp_path: Path) -> None:
    tasks = StuckQueue()
    then = "link.wait_for_instructions(); time.sleep(600)"
    supervisor = make_supervisor(tmp_path, then, restarts=100, workers=2, tasks=tasks)
    async with running(supervisor):
        for number in range(3):
            await wait_until(
                lambda: all(slot.heartbeat.lease_holder for slot in supervisor.slots), supervisor.send_instructions
            )
            os.kill(pid_of(supervisor.slots[number % 2]), 9)
            await wait_until(lambda number=number: len(supervisor.deaths) > number)  # type: ignore[misc]
        assert (tasks.asked, tasks.released) == (3, 0)
        supervisor.kill()
        tasks.go_on.set()
    assert tasks.released >= 3


async def test_workers_are_restarted_although_leases_cannot_be_expired(tmp_path: Path) -> None:
    tasks = StuckQueue(QueueStorageError("the server is away"))
    then = "while not versions: time.sleep(0.01)\nlink.close(); sys.exit(3)"
    supervisor = make_supervisor(tmp_path, then, restarts=100, tasks=tasks)
    async with running(supervisor):
        await wait_until(lambda: len(supervisor.deaths) >= 2 and tasks.asked > 0, supervisor.send_instructions)
        supervisor.drain()


async def test_a_supervisor_that_waits_before_a_restart_can_be_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.launch.supervisor._RESTART_PAUSES_SECONDS", (3600.0, 3600.0))
    supervisor = make_supervisor(tmp_path, "sys.exit(3)", restarts=100)
    async with running(supervisor):
        await wait_until(lambda: bool(supervisor.deaths))
        supervisor.drain()


async def test_a_worker_that_cannot_be_started_is_a_death(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "", restarts=1)
    supervisor.slots[0].command = (str(tmp_path / "nowhere"),)
    await run_until_workers_die(supervisor, "the process of scripted-0 could not start: .*nowhere")


async def test_workers_are_drained(tmp_path: Path) -> None:
    then = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (link.close(), sys.exit(0)))\ntime.sleep(600)"
    supervisor = make_supervisor(tmp_path, then, restarts=0, workers=2)
    async with running(supervisor):
        await wait_until(lambda: all_ready(supervisor))
        pids = [pid_of(slot) for slot in supervisor.slots]
        supervisor.drain()
    assert supervisor.deaths == []
    assert [process_state(pid) for pid in pids] == [None, None]


async def test_workers_get_new_instructions_and_are_killed_at_once(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "time.sleep(600)", restarts=0)
    async with running(supervisor):
        await wait_until(lambda: all_ready(supervisor))
        supervisor.send_instructions()
        await wait_until(lambda: supervisor.slots[0].heartbeat.lease_holder == "4 4")
        supervisor.kill()
    assert supervisor.deaths == []


async def test_a_worker_can_send_a_long_report(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "versions.append('x' * 1_000_000); time.sleep(600)", restarts=0)
    async with running(supervisor):
        await wait_until(lambda: len(supervisor.slots[0].heartbeat.lease_holder) >= 1_000_000)
        supervisor.kill()
    assert supervisor.deaths == []


async def test_a_worker_that_sends_no_heartbeat_is_not_considered_dead(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "import os\nos.kill(os.getpid(), 19)", restarts=0)
    async with running(supervisor):
        await wait_until(lambda: supervisor.slots[0].process is not None)
        await anyio.sleep(2.0)
        pid = pid_of(supervisor.slots[0])
        assert process_state(pid) == "T"
        os.kill(pid, 18)
        supervisor.kill()
    assert supervisor.deaths == []


@pytest.mark.parametrize(
    "report", [Heartbeat(finished=3), WorkerFailure("why"), WorkerFailure("why", is_configuration=True)]
)
def test_reports_are_read_as_they_were_written(report: Heartbeat | WorkerFailure) -> None:
    assert decode_report(encode_report(report)) == report


def test_a_restart_is_counted_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("rollout.launch.supervisor.time.monotonic", lambda: now)
    budget = RestartBudget(2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    now = 3601.0
    assert budget.spend()
