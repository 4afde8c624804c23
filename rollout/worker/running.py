"""Runs one environment in a separate task, and closes it there. The result is a score or an error.

A worker's attempt and a replay both run environments in this way. An exception of the environment's code is returned as
the result; it is not raised.
"""

import asyncio
import contextvars
from collections.abc import Callable, Collection
from typing import Any, Protocol

import anyio
import structlog

from rollout.environments.base import Environment, Model, describe_method
from rollout.records.task import Task
from rollout.worker.closing import EnvironmentCloser, wait_until_closed
from rollout.worker.failures import Failure, ScoreError, make_printable
from rollout.worker.scores import CheckedScore, check_score

log = structlog.get_logger()

_UNREQUESTED_CANCELLATION = "the environment raised a CancelledError, although nobody cancelled its rollout"
_CLEANUP_TIMEOUT = 5.0
"""Seconds for which a cancelled environment may clean up before it is closed."""
RunResult = CheckedScore | BaseException
"""The score that an environment returned, or the exception that it raised, made printable."""


class PlayedModel(Model, Protocol):
    """The model that an environment plays with."""

    @property
    def played_turns(self) -> Collection[int]:
        """The numbers of the turns that were played. Each of them may get a reward."""
        ...

    def close_unawaited_calls(self) -> int:
        """Close the calls of `chat` that nobody awaits, and return the number of these calls."""
        ...


class EnvironmentRun:
    """Runs a fresh environment with one task.

    Attributes:
        ended: two futures; one of them is done as soon as the environment has ended.
    """

    def __init__(
        self,
        new_environment: Callable[[], Environment],
        task: Task,
        model: PlayedModel,
        *,
        before_closing: Callable[[], object],
    ) -> None:
        """Start the environment.

        Args:
            new_environment: makes the environment.
            task: the task that the environment gets.
            model: the model that the environment gets.
            before_closing: called when the environment has ended, before it is closed.
        """
        self._new_environment = new_environment
        self._task = task
        self._model = model
        self._before_closing = before_closing
        self._closer = EnvironmentCloser()
        self._is_cancelling = False
        # The task is separate, so that the rollout can end if the environment ignores its cancellation and still runs.
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        self._result: asyncio.Future[RunResult] = self._loop.create_future()
        self._running = self._loop.create_task(self._run_and_close(), context=self._context)
        self.ended: tuple[asyncio.Future[Any], ...] = (self._result, self._running)

    @property
    def result(self) -> RunResult | None:
        """The environment's score, or the exception that it raised; None until the environment has ended."""
        return self._result.result() if self._result.done() else None

    @property
    def close_failure(self) -> Failure | None:
        """The error that the environment's `close` raised, or a TimeoutError if it took too long; otherwise None."""
        return self._closer.failure

    async def end(self) -> None:
        """Cancel the environment if it has not ended, and wait a few seconds until it is closed."""
        with anyio.CancelScope(shield=True):
            if not self._result.done():
                self._is_cancelling = True
                self._running.cancel()
                await asyncio.wait(self.ended, timeout=_CLEANUP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            closing = self._running
            if not (self._result.done() or self._running.done()):
                # The environment catches its cancellation, or waits for a thread.
                log.warning("the environment ignores its cancellation and still runs", seconds=_CLEANUP_TIMEOUT)
                closing = self._loop.create_task(self._close(), context=self._context)
            await wait_until_closed(closing, self._closer)

    async def _run_and_close(self) -> None:
        """Run the environment, set the result, and close the environment.

        All is done in one task, because task groups and time-outs must be left in the task that entered them. The
        result is set before the environment is closed, so that a failure of `close` does not change it.
        """
        self._result.set_result(await self._run())
        await self._close()

    async def _close(self) -> None:
        self._before_closing()
        await self._closer.close()

    async def _run(self) -> RunResult:
        """Run the environment; return its score, or the exception that it raised, made printable.

        All code of the environment except `close` is called here, also the methods of its score and its exception.
        An exception is returned and not raised, because a task that raises SystemExit ends the event loop.
        """
        try:
            self._closer.environment = environment = self._new_environment()
            method = describe_method(environment, environment.scoring_method)
            returned = await environment.run(self._task, self._model)
            await asyncio.sleep(0)  # raises a cancellation that the environment requested, before `close` runs
            if self._model.close_unawaited_calls():
                raise ScoreError(
                    f"{method} called `chat` without waiting for the reply, so the turn was never played; "
                    "write `await model.chat(…)`"
                )
            return check_score(returned, method, self._model.played_turns)
        except asyncio.CancelledError as error:
            if self._is_cancelling:
                return error
            # Nobody cancelled this rollout, so it needs an error that explains its end.
            cancellation_error = RuntimeError(_UNREQUESTED_CANCELLATION)
            cancellation_error.__cause__ = error
            return cancellation_error
        except BaseException as error:  # noqa: BLE001 - anything that an environment raises ends its rollout
            return make_printable(error)
