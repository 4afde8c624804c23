"""Ends an event loop although tasks in it do not end: `asyncio.run` would wait for them for ever.

An environment or a tool may catch its cancellation, or wait for a thread. Then its rollout ends without it, and so does
the event loop.
"""

import asyncio
import ctypes
from collections.abc import Coroutine
from typing import Any, TypeVar

_LEAVING_TIMEOUT = 3.0
"""Seconds in which tasks and threads can end before the loop ends without them."""
_T = TypeVar("_T")


def run_leaving_behind(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in an event loop of its own, as `asyncio.run` does, and return what it returns.

    Then the other tasks of the loop are cancelled. The loop ends without those that do not end within a few seconds.
    """
    # Not as a context manager: the end of a Runner waits for every task.
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    try:
        return runner.run(main)
    finally:
        _end_loop(loop)


def _end_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_until_complete(_cancel_what_is_left())
    finally:
        for task in asyncio.all_tasks(loop):
            _keep_for_ever(task)
        loop.set_exception_handler(lambda *_: None)  # nobody can do anything about these tasks any more
        loop.close()


def _keep_for_ever(task: "asyncio.Task[Any]") -> None:
    """Count one more reference to a task, so that not even the end of the process destroys it.

    Destroying a task raises GeneratorExit in it. Code that catches everything in a loop would then run for ever.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


async def _cancel_what_is_left() -> None:
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    ended = await _wait(left)
    for task in ended:
        if not task.cancelled() and (error := task.exception()) is not None:
            message = "a task raised an exception while its event loop was ended"
            loop.call_exception_handler({"message": message, "exception": error, "task": task})
    # Neither of them is cancelled if it takes too long: the second one would then wait without an end.
    await _wait({loop.create_task(loop.shutdown_asyncgens()), loop.create_task(loop.shutdown_default_executor())})


async def _wait(tasks: "set[asyncio.Task[Any]]") -> "set[asyncio.Task[Any]]":
    """Wait for tasks, but not for long; return those that have ended."""
    if not tasks:
        return set()
    ended, _ = await asyncio.wait(tasks, timeout=_LEAVING_TIMEOUT)
    return ended
