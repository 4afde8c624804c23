"""Keeps the context manager `shared` of an environment's class open while a worker plays rollouts.

`shared` yields the resources that all instances in one process use. It is entered and left in a separate task. So if a
task group in `shared` fails, only this task is cancelled, and the worker can end even if `shared` still runs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import structlog

from rollout.environments.base import Environment, WrongReturn, describe_method
from rollout.errors import RolloutError, describe_user_error
from rollout.records.wrong_types import describe_wrong_type
from rollout.worker.containment import enter_shared_context
from rollout.worker.failures import describe_failure, make_printable

log = structlog.get_logger()

_START_TIMEOUT = 60.0
_CLOSE_TIMEOUT = 10.0
_CANCELLED_TIMEOUT = 1.0
"""Seconds within which `shared` must end after it took too long and was cancelled."""


class SharedResourcesFailed(RolloutError):
    """`shared` of an environment's class could not be opened, or failed while rollouts were played."""


@asynccontextmanager
async def open_shared_resources(environment_class: type[Environment], settings: object) -> AsyncIterator[Any]:
    """Open `shared` of an environment's class, and yield its resources. A failure when it closes is only logged.

    If `shared` ends while the code inside this context still runs, that code is cancelled.

    Raises:
        SharedResourcesFailed: `shared` could not be opened, or it ended too early.
    """
    holder = _Holder(environment_class, settings)
    try:
        resources = await holder.open()
        with anyio.CancelScope() as scope:
            holder.call_when_ended_early(scope.cancel)
            yield resources
        if scope.cancelled_caught:
            raise holder.take_failure("ended while rollouts were played")
    finally:
        with anyio.CancelScope(shield=True):
            await holder.close()


class _Holder:
    """Keeps `shared` open in a separate task."""

    def __init__(self, environment_class: type[Environment], settings: object) -> None:
        self._environment_class = environment_class
        self._settings = settings
        self._method = describe_method(environment_class, "shared")
        self._resources: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._close_requested = asyncio.Event()
        self._failure_taken = False
        self._task = asyncio.create_task(self._hold_open())

    async def open(self) -> Any:
        """Wait for the resources that `shared` yields, and return them.

        Raises:
            SharedResourcesFailed: `shared` ended before it yielded, or did not yield in time.
        """
        waiting: list[asyncio.Future[Any]] = [self._resources, self._task]
        await asyncio.wait(waiting, timeout=_START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if self._resources.done():
            return self._resources.result()
        if self._task.done():
            raise self.take_failure("ended before it yielded")
        raise SharedResourcesFailed(
            f"{self._method} did not yield within {_START_TIMEOUT:g} s; no rollout can be played without its resources."
        )

    def call_when_ended_early(self, callback: Callable[[], object]) -> None:
        """Call `callback` if `shared` ends before `close` is called."""
        self._task.add_done_callback(lambda _: None if self._close_requested.is_set() else callback())

    def take_failure(self, what: str) -> SharedResourcesFailed:
        """Return an error that says why `shared` has ended. `close` then does not log the failure."""
        self._failure_taken = True
        error = self._task.result()
        reason = "it raised nothing." if error is None else describe_user_error(error)
        failure = SharedResourcesFailed(f"{self._method} {what}: {reason}")
        failure.__cause__ = error
        return failure

    async def close(self) -> None:
        """Close `shared`; if it does not end in time, log this and return."""
        self._close_requested.set()
        if not self._resources.done():
            self._task.cancel()  # nobody waits for the resources any more
        event = "the shared resources failed" if self._task.done() else "closing the shared resources failed"
        await asyncio.wait([self._task], timeout=_CLOSE_TIMEOUT)
        if not self._task.done():
            event = "closing the shared resources took too long"
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCELLED_TIMEOUT)
        if not self._task.done():
            log.warning("the shared resources ignore their cancellation and still run", of=self._method)
        elif (error := self._task.result()) is not None and not self._failure_taken:
            log.warning(event, of=self._method, exception=describe_failure(error).full_traceback)

    async def _hold_open(self) -> BaseException | None:
        """Keep `shared` open until `close` is called; return the exception that `shared` raised, or None.

        The exception is returned and not raised, because a task that raises SystemExit ends the event loop.
        """
        enter_shared_context()
        try:
            async with self._call_shared() as resources:
                self._resources.set_result(resources)
                await self._close_requested.wait()
        except BaseException as error:  # noqa: BLE001 - every exception of `shared` is reported as its failure
            return make_printable(error)
        return None

    def _call_shared(self) -> AbstractAsyncContextManager[Any]:
        returned: object = self._environment_class.shared(self._settings)
        if isinstance(returned, AbstractAsyncContextManager):
            return returned
        raise WrongReturn(
            f"{self._method} returned {describe_wrong_type(returned)}; write `@classmethod` and `@asynccontextmanager` "
            "above it."
        )
