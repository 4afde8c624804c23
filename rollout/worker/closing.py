"""The end of an environment's instance: `close` is called once after its attempt, whatever ended the attempt.

A rollout's finished record is put after that, so that nothing of an attempt is left when its rollout has ended or is
played again. A `close` that hangs delays it by a few seconds.
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
"""Seconds that `close` has."""
_CANCELLED_CLOSE_TIMEOUT = 1.0
"""Seconds in which a `close` must end that was cancelled because it took too long."""


class EnvironmentCloser:
    """Closes the environment of one attempt, once.

    Attributes:
        environment: the environment; None as long as none was made.
        failure: what `close` raised, or that it took too long; None as long as nothing is wrong.
    """

    def __init__(self) -> None:
        self.environment: Environment | None = None
        self.failure: Failure | None = None
        self._has_begun = False

    async def close(self) -> None:
        """Close the environment, if this has not begun already. Nothing is raised: what fails is logged and kept."""
        if self.environment is None or self._has_begun:
            return
        self._has_begun = True
        await _forget_cancellations()
        deadline = asyncio.timeout(_CLOSE_TIMEOUT)
        try:
            async with deadline:
                await _call_close(self.environment)
        except BaseException as error:  # noqa: BLE001 - whatever `close` raises must not change how its rollout ended
            event = "close of the environment failed"
            if deadline.expired():
                event = "close of the environment took too long"
                cause, error = error, TimeoutError(f"close did not end within {_CLOSE_TIMEOUT:g} s")
                error.__cause__ = cause
            self.failure = describe_failure(make_printable(error))
            log.warning(event, exception=self.failure.full_traceback)

    def leave_behind(self) -> None:
        """Note that `close` does not end."""
        self.failure = describe_failure(TimeoutError("close does not let itself be ended, and is left behind"))
        log.warning("close of the environment does not let itself be ended, and is left behind")


async def wait_until_closed(closing_task: "asyncio.Task[Any]", closer: EnvironmentCloser) -> None:
    """Wait for the task in which an environment is closed, and go on without it if it does not end."""
    await asyncio.wait([closing_task], timeout=_CLOSE_TIMEOUT + _CANCELLED_CLOSE_TIMEOUT)
    if not closing_task.done():
        closer.leave_behind()


async def _forget_cancellations() -> None:
    """Let the task go on as if nobody had cancelled it, so that `close` can await and have time-outs of its own."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # where a cancellation is raised that no await has met yet
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
            f"{describe_method(environment, 'close')} returned {describe_wrong_type(returned)}; it returns nothing."
        )
