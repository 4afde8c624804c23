"""A rollout cannot end or block the process of its worker."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollout.worker import containment
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
        enter_attempt_context(lambda: None)
        with pytest.raises(ExitRefused, match=r"raised SystemExit\(3\)"):
            await asyncio.gather(exits(), asyncio.sleep(0))
    finally:
        loop.set_task_factory(None)


async def test_each_attempt_may_print_up_to_its_own_limit() -> None:
    inner = io.StringIO()
    output = LimitedOutput(inner)

    async def chatty(megabytes: int) -> None:
        enter_attempt_context(lambda: None)
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
    enter_attempt_context(lambda: None)
    with pytest.raises(OutputFlood):
        await asyncio.to_thread(output.write, "x" * (17 << 20))


@pytest.fixture
def _quick_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "_CHECK_INTERVAL", 0.1)


def blocking_function(module: str, file_name: str = "module.py") -> Callable[[], None]:
    """Return a function that sleeps for a minute and seems to be in this module."""
    code = compile("import time\ndef hold(): time.sleep(60)\n", file_name, "exec")
    namespace: dict[str, Any] = {"__name__": module}
    exec(code, namespace)
    return namespace["hold"]  # type: ignore[no-any-return]


@pytest.mark.usefixtures("_quick_watchdog")
async def test_an_environment_that_blocks_the_loop_is_interrupted_even_if_it_catches_exceptions() -> None:
    async def attempt() -> None:
        enter_attempt_context(lambda: None)
        with contextlib.suppress(Exception):
            time.sleep(60)  # noqa: ASYNC251 - it blocks the loop

    with LoopWatchdog(0.05), pytest.raises(EventLoopHeld, match="this environment blocked the event loop"):
        await attempt()


@pytest.mark.usefixtures("_quick_watchdog")
async def test_a_task_that_an_environment_starts_is_interrupted_too() -> None:
    async def hold() -> None:
        time.sleep(60)  # noqa: ASYNC251 - it blocks the loop

    loop = asyncio.get_running_loop()
    refuse_exits(loop)
    try:
        with LoopWatchdog(0.05):
            enter_attempt_context(lambda: None)
            with pytest.raises(EventLoopHeld):
                await asyncio.create_task(hold())
    finally:
        loop.set_task_factory(None)


@pytest.mark.usefixtures("_quick_watchdog")
@pytest.mark.parametrize(
    "module",
    ["rollout.records.messages", "rollout.session.session", "renderers_adapter.pool", "rollout.gateway.echoes"],
)
async def test_code_of_the_package_is_interrupted_and_its_attempt_is_closed(module: str) -> None:
    closed: list[bool] = []
    enter_attempt_context(lambda: closed.append(True))
    with LoopWatchdog(0.05, lambda _: None), pytest.raises(EventLoopHeld, match=rf"was interrupted in {module}"):
        blocking_function(module)()
    assert closed == [True]


@pytest.mark.usefixtures("_quick_watchdog")
async def test_code_that_rollouts_share_is_interrupted_if_the_process_cannot_end() -> None:
    enter_attempt_context(lambda: None)
    began = time.monotonic()
    with LoopWatchdog(0.2), pytest.raises(EventLoopHeld, match=r"Our code was interrupted in transports\.files"):
        blocking_function("transports.files")()
    assert time.monotonic() - began > 0.4


class Stuck(BaseException):
    """Raised in the main thread instead of ending the process."""


@pytest.mark.usefixtures("_quick_watchdog")
async def test_a_worker_whose_own_code_blocks_the_loop_reports_the_place_and_ends() -> None:
    descriptions: list[str] = []

    def end_process(description: str) -> None:
        descriptions.append(description)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def raise_stuck(*_: object) -> None:
        raise Stuck

    previous = signal.signal(signal.SIGUSR1, raise_stuck)
    try:
        enter_attempt_context(lambda: None)
        attempt_file = str(Path(containment.__file__).with_name("attempt.py"))
        with LoopWatchdog(0.05, end_process), pytest.raises(Stuck):
            blocking_function("transports.files", attempt_file)()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert re.match(
        r"transports\.files \(.*attempt\.py, line 2\), which works for one rollout, has blocked", descriptions[0]
    )


@pytest.mark.usefixtures("_quick_watchdog")
async def test_a_run_that_ends_interrupts_a_blocked_loop_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "_HURRIED_BLOCK_TIMEOUT", 0.05)
    enter_attempt_context(lambda: None)
    with LoopWatchdog(1000) as watchdog:
        watchdog.hurry()
        with pytest.raises(EventLoopHeld):
            time.sleep(60)  # noqa: ASYNC251 - it blocks the loop


@pytest.mark.usefixtures("_quick_watchdog")
async def test_code_outside_an_attempt_is_not_interrupted() -> None:
    with LoopWatchdog(0.05) as watchdog:
        time.sleep(0.5)  # noqa: ASYNC251 - it blocks the loop
        assert watchdog.stalled_seconds > 0.1
        async with asyncio.timeout(20):
            while watchdog.stalled_seconds:  # noqa: ASYNC110 - a thread measures it
                await asyncio.sleep(0.01)


def test_a_worker_without_its_supervisor_dies_with_its_children(tmp_path: Path) -> None:
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
