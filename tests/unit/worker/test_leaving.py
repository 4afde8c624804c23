"""An event loop ends although its tasks and threads continue."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading

import pytest

from rollout.worker import leaving
from rollout.worker.leaving import run_leaving_behind


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_LEAVING_TIMEOUT", 0.05)


async def never_end() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def test_a_remaining_task_is_cancelled_and_can_clean_up() -> None:
    events = []

    async def main() -> int:
        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                events.append("cleaned up")

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert not task.done()
        return 5

    assert run_leaving_behind(main()) == 5
    assert events == ["cleaned up"]


def test_a_task_that_ignores_its_cancellation_is_left_without_an_error_text(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> str:
        asyncio.get_running_loop().create_task(never_end())
        await asyncio.sleep(0)
        return "done"

    assert run_leaving_behind(main()) == "done"
    gc.collect()
    assert capfd.readouterr() == ("", "")


CATCHES_EVERYTHING = """
import asyncio
from rollout.worker import leaving

async def never_end():
    while True:
        try:
            await asyncio.Event().wait()
        except BaseException:
            pass

async def main():
    asyncio.get_running_loop().create_task(never_end())
    await asyncio.sleep(0)

leaving._LEAVING_TIMEOUT = 0.05
leaving.run_leaving_behind(main())
"""


def test_a_process_ends_although_a_task_catches_everything() -> None:
    command = [sys.executable, "-c", CATCHES_EVERYTHING]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_thread_is_not_waited_for() -> None:
    may_end = threading.Event()

    async def main() -> str:
        asyncio.get_running_loop().run_in_executor(None, may_end.wait)
        return "done"

    assert run_leaving_behind(main()) == "done"
    assert not may_end.is_set()
    may_end.set()


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3)], ids=["bug", "ctrl", "exit"]
)
def test_an_error_of_the_coroutine_is_raised(error: BaseException) -> None:
    async def main() -> None:
        asyncio.get_running_loop().create_task(never_end())
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)) as raised:
        run_leaving_behind(main())
    assert raised.value is error


def test_an_error_of_a_remaining_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def fail() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("no cleaning up")

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        assert not task.done()

    run_leaving_behind(main())
    assert "a task raised an exception while its event loop ended" in caplog.text
    assert "no cleaning up" in caplog.text
