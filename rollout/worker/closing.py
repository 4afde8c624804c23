"""Closes an environment: calls its `close` once after each attempt, even if the attempt failed.

The finished record is put after `close` has ended. So no code of an attempt still runs when its rollout has ended, or
is played again. Only if `close` hangs, the record is put after a few seconds, while `close` still runs.
"""

import asyncio
import inspect
from contextlib import suppress
from typing import Any

import structlog

from rollout.environments.base import Environment, WrongReturn, describe_method
from rollout.records.wrong_types import describe_wrong_type
from rollout.worker.failures import Failure, describe_failure, make_printable

log = structlog.get_logger()

_CLOSE_TIMEOUT = 5.0
"""Seconds within which `close` must end."""
_CANCELLED_CLOSE_TIMEOUT = 1.0
"""Seconds within which `close` must end after it took too long and was cancelled."""


class EnvironmentCloser:
    """Closes the environment of one attempt, once.

    Attributes:
        environment: the environment to close; None until it is made.
        failure: the error that `close` raised, or a TimeoutError if it took too long; None if it did not fail.
    """

    def __init__(self) -> None:
        self.environment: Environment | None = None
        self.failure: Failure | None = None
        self._has_begun = False

    async def close(self) -> None:
        """Close the environment if it is not closed yet. A failure is logged and stored in `failure`, not raised."""
        if self.environment is None or self._has_begun:
            return
        self._has_begun = True
        await _forget_cancellations()
        deadline = asyncio.timeout(_CLOSE_TIMEOUT)
        try:
            async with deadline:
                await _call_close(self.environment)
        except BaseException as error:  # noqa: BLE001 - a failure of `close` must not change how the rollout ended
            event = "close of the environment failed"
            if deadline.expired():
                event = "close of the environment took too long"
                cause, error = error, TimeoutError(f"close did not end within {_CLOSE_TIMEOUT:g} s")
                error.__cause__ = cause
            self.failure = describe_failure(make_printable(error))
            log.warning(event, exception=self.failure.full_traceback)

    def report_hang(self) -> None:
        """Log that `close` does not end, and store this in `failure`."""
        self.failure = describe_failure(TimeoutError("close ignores its cancellation and still runs"))
        log.warning("close of the environment ignores its cancellation and still runs")


async def wait_until_closed(closing_task: "asyncio.Task[Any]", closer: EnvironmentCloser) -> None:
    """Wait for the task that closes an environment; if it does not end in time, report this and return."""
    await asyncio.wait([closing_task], timeout=_CLOSE_TIMEOUT + _CANCELLED_CLOSE_TIMEOUT)
    if not closing_task.done():
        closer.report_hang()


async def _forget_cancellations() -> None:
    """Clear the cancellations of this task, so that `close` can await and use time-outs."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # raises a cancellation that no await has raised yet
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()


async def _call_close(environment: Environment) -> None:
    returned: object = environment.close()
    if inspect.isawaitable(returned):
        returned = await returned
    if returned is not None:
        raise WrongReturn(
            f"{describe_method(environment, 'close')} returned {describe_wrong_type(returned)}; it must return nothing."
        )
