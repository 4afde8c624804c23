"""One rollout does not take its process along."""

import asyncio
import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.worker.containment import (
    EventLoopHeld,
    ExitRefused,
    LimitedOutput,
    LoopWatchdog,
    OutputFlood,
    enter_attempt_context,
    refuse_exits,
)
from rollout.worker.link import Heartbeat, decode_report

FORK_SCRIPT = """
import os, subprocess, sys
from rollout.worker.containment import ForkRefused, refuse_forks
refuse_forks()
for fork in (os.fork, os.forkpty):
    try:
        fork()
    except ForkRefused as error:
        print(error)
subprocess.run([sys.executable, "-c", "print('subprocesses are fine')"], check=True)
"""


def test_forks_are_refused_and_subprocesses_are_not() -> None:
    done = subprocess.run([sys.executable, "-c", FORK_SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    lines = sorted(done.stdout.splitlines())
    assert lines[0] == lines[1]
    assert "multiprocessing with the spawn method" in lines[0]
    assert lines[2] == "subprocesses are fine"


async def test_an_exit_in_a_task_of_an_attempt_is_an_error_of_that_task() -> None:
    async def exits() -> None:
        sys.exit(3)

    loop = asyncio.get_running_loop()
    refuse_exits(loop)
    try:
        enter_attempt_context()
        with pytest.raises(ExitRefused, match=r"raised SystemExit\(3\)"):
            await asyncio.gather(exits(), asyncio.sleep(0))
    finally:
        loop.set_task_factory(None)


async def test_each_attempt_may_print_so_much_and_no_more() -> None:
    inner = io.StringIO()
    output = LimitedOutput(inner)

    async def chatty(megabytes: int) -> None:
        enter_attempt_context()
        for _ in range(megabytes):
            output.write("x" * (1 << 20))
            await asyncio.sleep(0)

    many, few = await asyncio.gather(chatty(20), chatty(10), return_exceptions=True)
    assert isinstance(many, OutputFlood)
    assert few is None
    output.write("not of an attempt")
    assert inner.getvalue().endswith("not of an attempt")


async def test_threads_of_an_attempt_count_as_the_attempt() -> None:
    output = LimitedOutput(io.StringIO())
    enter_attempt_context()
    with pytest.raises(OutputFlood):
        await asyncio.to_thread(output.write, "x" * (17 << 20))


async def test_an_environment_that_holds_the_loop_is_interrupted_whatever_it_catches() -> None:
    async def attempt() -> None:
        enter_attempt_context()
        with contextlib.suppress(Exception):
            time.sleep(60)  # noqa: ASYNC251 - that is the point

    began = time.monotonic()
    with LoopWatchdog(0.2), pytest.raises(EventLoopHeld):
        await attempt()
    assert time.monotonic() - began < 30


async def test_a_task_that_an_environment_starts_is_interrupted_too() -> None:
    async def hold() -> None:
        time.sleep(60)  # noqa: ASYNC251 - that is the point

    loop = asyncio.get_running_loop()
    refuse_exits(loop)
    try:
        with LoopWatchdog(0.2):
            enter_attempt_context()
            with pytest.raises(EventLoopHeld):
                await asyncio.create_task(hold())
    finally:
        loop.set_task_factory(None)


async def test_what_is_no_attempt_is_not_interrupted() -> None:
    with LoopWatchdog(0.1) as watchdog:
        time.sleep(2.5)  # noqa: ASYNC251 - that is the point
        assert watchdog.stalled_seconds > 0.5
        await asyncio.sleep(1.2)
        assert watchdog.stalled_seconds == 0.0


def test_a_worker_whose_supervisor_is_gone_dies_with_what_it_started(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "from rollout.worker.link import Heartbeat, SupervisorLink\n"
        "link = SupervisorLink(int(sys.argv[1]))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "link.start_reporting(lambda: Heartbeat(ready=True, lease_holder=str(child.pid)), lambda orders: None)\n"
        "time.sleep(600)\n"
    )
    supervisor_socket, worker_socket = socket.socketpair()
    with worker_socket:
        command = [sys.executable, str(script), str(worker_socket.fileno())]
        worker = subprocess.Popen(command, pass_fds=(worker_socket.fileno(),), start_new_session=True)
    with supervisor_socket, supervisor_socket.makefile("rb") as lines:
        heartbeat = Heartbeat()
        while not heartbeat.ready:
            report = decode_report(lines.readline())
            assert isinstance(report, Heartbeat)
            heartbeat = report
        child = int(heartbeat.lease_holder)
    assert worker.wait(timeout=20) == -9
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline and "zombie" not in Path(f"/proc/{child}/status").read_text():
            os.kill(child, 0)
            time.sleep(0.02)
    assert time.monotonic() < deadline
