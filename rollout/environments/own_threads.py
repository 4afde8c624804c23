"""Runs a user's function in a thread of its own, because it may block, and may never end."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Raised:
    """An error that a function raised, as a return value; a SystemExit that leaves a task would end the event loop.

    Attributes:
        error: the error.
    """

    error: BaseException


async def run_in_own_thread(name: str, function: Callable[[], Any]) -> Any:
    """Run a function in its own thread, and return its result or a `Raised`.

    If this is cancelled, the function may continue to run. Its thread takes no place in the pool that the worker uses
    for files, queues and images. When the process ends, it does not wait for the thread.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # noqa: BLE001 - the caller decides what an error means
            result = Raised(error)
        with suppress(RuntimeError):  # the event loop has ended, so nobody waits for the result
            loop.call_soon_threadsafe(deliver, result)

    def deliver(result: Any) -> None:
        if not outcome.done():
            outcome.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    result = await outcome
    # A function that wraps a coroutine function returns a coroutine that has not run yet.
    return await result if inspect.iscoroutine(result) else result
