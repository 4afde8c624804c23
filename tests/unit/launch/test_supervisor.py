"""A fleet of worker processes, with scripts in the place of workers."""

import errno
import os
import sys
from pathlib import Path

import anyio
import pytest

from rollout.launch.local import LocalPlace
from rollout.launch.supervisor import RestartBudget, Supervisor, WorkersDie, WorkerSlot
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
    """Another handle's leases are ended only when the test says so, or cannot be."""

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


def pid_of(slot: WorkerSlot) -> int:
    assert slot.process is not None
    return slot.process.pid


async def test_dead_workers_are_replaced_until_the_budget_is_spent(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "link.close(WorkerFailure('the disk is full')); sys.exit(3)", restarts=2)
    with pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match="scripted died more times .* the disk is full")):
        await supervisor.run()
    assert [(death.worker, death.exit_code, death.reason) for death in supervisor.deaths] == [
        ("scripted-0", 3, "the disk is full")
    ] * 3
    assert (tmp_path / "0.out").read_text() == "engines http://engine/scripted\n" * 3


async def test_a_worker_whose_output_cannot_be_kept_is_not_started_and_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.out").mkdir()
    supervisor = make_supervisor(tmp_path, "raise AssertionError", restarts=0)
    expected = rf"the process of scripted-0 could not start: {tmp_path}/0\.out: Is a directory"
    with anyio.fail_after(30), pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match=expected)):
        await supervisor.run()
    assert [death.exit_code for death in supervisor.deaths] == [1]


async def test_a_worker_is_not_started_without_descriptors_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    supervisor = make_supervisor(tmp_path, "raise AssertionError", restarts=0)
    monkeypatch.setattr("rollout.launch.local.socket.socketpair", fail)
    with (
        anyio.fail_after(30),
        pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match="-0 could not start: Too many open files")),
    ):
        await supervisor.run()


async def test_a_death_is_noticed_while_what_the_worker_started_holds_its_output(tmp_path: Path) -> None:
    then = """
import os, subprocess
child = subprocess.Popen(["sleep", "600"])
print("child", child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    supervisor = make_supervisor(tmp_path, then, restarts=0)
    with anyio.fail_after(30), pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match="signal SIGKILL")):
        await supervisor.run()
    child = int((tmp_path / "0.out").read_text().split()[-1])
    assert process_state(child) in (None, "Z")


async def test_a_queue_that_does_not_release_leases_holds_nobody_up(tmp_path: Path) -> None:
    tasks = StuckQueue()
    supervisor = make_supervisor(
        tmp_path, "link.wait_for_instructions(); time.sleep(600)", restarts=100, workers=2, tasks=tasks
    )
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            for deaths in range(1, 4):
                while not all(slot.heartbeat.lease_holder for slot in supervisor.slots):
                    supervisor.send_instructions()
                    await anyio.sleep(0.02)
                os.kill(pid_of(supervisor.slots[deaths % 2]), 9)
                while len(supervisor.deaths) < deaths:  # noqa: ASYNC110 - it is another process
                    await anyio.sleep(0.02)
        assert (tasks.asked, tasks.released) == (3, 0)
        supervisor.kill()
        tasks.go_on.set()
    assert tasks.released >= 3


async def test_leases_that_cannot_be_released_are_left_to_lapse(tmp_path: Path) -> None:
    tasks = StuckQueue(QueueStorageError("the server is away"))
    then = "while not versions: time.sleep(0.01)\nlink.close(); sys.exit(3)"
    supervisor = make_supervisor(tmp_path, then, restarts=100, tasks=tasks)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            while len(supervisor.deaths) < 2 or not tasks.asked:
                supervisor.send_instructions()
                await anyio.sleep(0.02)
        supervisor.drain()


async def test_a_fleet_that_waits_before_it_starts_anew_lets_itself_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.launch.supervisor._RESTART_PAUSES_SECONDS", (3600.0, 3600.0))
    supervisor = make_supervisor(tmp_path, "sys.exit(3)", restarts=100)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            while not supervisor.deaths:  # noqa: ASYNC110 - it is another process
                await anyio.sleep(0.02)
            supervisor.drain()


async def test_a_worker_that_cannot_be_started_is_a_death(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "", restarts=1)
    supervisor.slots[0].command = (str(tmp_path / "nowhere"),)
    with pytest.RaisesGroup(pytest.RaisesExc(WorkersDie, match="the process of scripted-0 could not start: .*nowhere")):
        await supervisor.run()


async def test_a_fleet_drains(tmp_path: Path) -> None:
    then = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (link.close(), sys.exit(0)))\ntime.sleep(600)"
    supervisor = make_supervisor(tmp_path, then, restarts=0, workers=2)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            await wait_until_ready(supervisor)
        pids = [pid_of(slot) for slot in supervisor.slots]
        supervisor.drain()
    assert supervisor.deaths == []
    assert [process_state(pid) for pid in pids] == [None, None]


async def test_workers_are_told_news_and_killed_at_once(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "time.sleep(600)", restarts=0)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            await wait_until_ready(supervisor)
            supervisor.send_instructions()
            while supervisor.slots[0].heartbeat.lease_holder != "4 4":  # noqa: ASYNC110 - it is another process that changes
                await anyio.sleep(0.02)
        supervisor.kill()
    assert supervisor.deaths == []


async def test_a_worker_may_have_much_to_tell(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "versions.append('x' * 1_000_000); time.sleep(600)", restarts=0)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            while len(supervisor.slots[0].heartbeat.lease_holder) < 1_000_000:  # noqa: ASYNC110 - it is another process that changes
                await anyio.sleep(0.02)
        supervisor.kill()
    assert supervisor.deaths == []


async def test_a_worker_that_is_not_heard_is_not_taken_for_dead_by_its_silence_alone(tmp_path: Path) -> None:
    supervisor = make_supervisor(tmp_path, "import os\nos.kill(os.getpid(), 19)", restarts=0)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        with anyio.fail_after(30):
            while supervisor.slots[0].process is None:  # noqa: ASYNC110 - it is another process that changes
                await anyio.sleep(0.02)
        await anyio.sleep(2.0)
        pid = pid_of(supervisor.slots[0])
        assert pid is not None
        assert process_state(pid) == "T"
        os.kill(pid, 18)
        supervisor.kill()
    assert supervisor.deaths == []


@pytest.mark.parametrize("report", [Heartbeat(finished=3), WorkerFailure("why")])
def test_reports_are_read_as_they_were_written(report: Heartbeat | WorkerFailure) -> None:
    assert decode_report(encode_report(report)) == report


def test_a_budget_is_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("rollout.launch.supervisor.time.monotonic", lambda: now)
    budget = RestartBudget(2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    now = 3601.0
    assert budget.spend()


async def wait_until_ready(supervisor: Supervisor) -> None:
    while True:
        if all(slot.heartbeat.ready for slot in supervisor.slots):
            return
        await anyio.sleep(0.02)
