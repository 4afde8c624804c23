"""Ends an event loop even if some of its tasks do not end. `asyncio.run` would wait for these tasks for ever.

An environment or a tool that ignores its cancellation, or waits for a thread, still runs when its rollout has ended.
"""

import asyncio
import ctypes
from collections.abc import Coroutine
from typing import Any, TypeVar

_LEAVING_TIMEOUT = 3.0
"""Seconds to wait for tasks and threads before the event loop ends without them."""
_T = TypeVar("_T")


def run_leaving_behind(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new event loop, as `asyncio.run` does, and return its result.

    Afterwards, the other tasks of the loop are cancelled. The loop ends after a few seconds, even if some still run.
    """
    # The Runner is not used as a context manager, because its exit waits for every task.
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    try:
        return runner.run(main)
    finally:
        _end_loop(loop)


def _end_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_until_complete(_cancel_remaining_tasks())
    finally:
        for task in asyncio.all_tasks(loop):
            _keep_for_ever(task)
        loop.set_exception_handler(lambda *_: None)  # nobody can correct errors of these tasks any more
        loop.close()


def _keep_for_ever(task: "asyncio.Task[Any]") -> None:
    """Add a reference to a task, so that Python does not destroy the task even when the process ends.

    To destroy a task, Python raises GeneratorExit in it. A task that catches every exception would then run for ever.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


async def _cancel_remaining_tasks() -> None:
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    ended = await _wait(left)
    for task in ended:
        if not task.cancelled() and (error := task.exception()) is not None:
            message = "a task raised an exception while its event loop ended"
            loop.call_exception_handler({"message": message, "exception": error, "task": task})
    # These two tasks are not cancelled if they take too long, because the second one would then wait for ever.
    await _wait({loop.create_task(loop.shutdown_asyncgens()), loop.create_task(loop.shutdown_default_executor())})


async def _wait(tasks: "set[asyncio.Task[Any]]") -> "set[asyncio.Task[Any]]":
    """Wait a few seconds for tasks, and return those that have ended."""
    if not tasks:
        return set()
    ended, _ = await asyncio.wait(tasks, timeout=_LEAVING_TIMEOUT)
    return ended
