"""Runs one environment in a task of its own, and closes it there. The result is a score or an error.

A worker's attempt and a replay both run environments in this way. The environment's code cannot make anything raise
here.
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

_UNREQUESTED_CANCELLATION = "the environment raised a cancellation of its own"
_CLEANUP_TIMEOUT = 5.0
"""Seconds in which a cancelled environment can clean up, before it is closed."""
RunResult = CheckedScore | BaseException
"""The score that an environment returned, or the exception that it raised, made printable."""


class PlayedModel(Model, Protocol):
    """The model that an environment plays with."""

    @property
    def played_turns(self) -> Collection[int]:
        """The turns that were played, which may have a reward of their own."""
        ...

    def close_unawaited_calls(self) -> int:
        """Close the calls of `chat` that nobody awaits; return how many there were."""
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
            task: the task that it gets.
            model: the model that it gets.
            before_closing: called when the environment has ended, before it is closed.
        """
        self._new_environment = new_environment
        self._task = task
        self._model = model
        self._before_closing = before_closing
        self._closer = EnvironmentCloser()
        self._is_cancelling = False
        # A separate task: an environment that ignores its cancellation is left behind.
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        self._result: asyncio.Future[RunResult] = self._loop.create_future()
        self._running = self._loop.create_task(self._run_and_close(), context=self._context)
        self.ended: tuple[asyncio.Future[Any], ...] = (self._result, self._running)

    @property
    def result(self) -> RunResult | None:
        """The environment's score, or what it raised; None until the environment has ended."""
        return self._result.result() if self._result.done() else None

    @property
    def close_failure(self) -> Failure | None:
        """What the environment's `close` raised, or that it took too long; None if neither happened."""
        return self._closer.failure

    async def end(self) -> None:
        """Cancel the environment if it has not ended, and wait until it is closed, but not for long."""
        with anyio.CancelScope(shield=True):
            if not self._result.done():
                self._is_cancelling = True
                self._running.cancel()
                await asyncio.wait(self.ended, timeout=_CLEANUP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            closing = self._running
            if not (self._result.done() or self._running.done()):
                # It waits for a thread, or it catches the cancellation.
                log.warning("the environment ignores its cancellation and is left behind", seconds=_CLEANUP_TIMEOUT)
                closing = self._loop.create_task(self._close(), context=self._context)
            await wait_until_closed(closing, self._closer)

    async def _run_and_close(self) -> None:
        """Run the environment and close it in the same task, which its open task groups and time-outs require.

        The result is set before the environment is closed, so that a failure of `close` does not change it.
        """
        self._result.set_result(await self._run())
        await self._close()

    async def _close(self) -> None:
        self._before_closing()
        await self._closer.close()

    async def _run(self) -> RunResult:
        """Return the environment's score, or the exception that it raised, made printable.

        Only this method calls the environment's code, which includes the methods of its score and its exception.
        Nothing is raised, because a task that raises SystemExit ends the event loop.
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
            # Nobody cancelled this rollout. If the cancellation went on, the rollout would end without a reason.
            cancellation_error = RuntimeError(_UNREQUESTED_CANCELLATION)
            cancellation_error.__cause__ = error
            return cancellation_error
        except BaseException as error:  # noqa: BLE001 - anything that an environment raises ends its rollout
            return make_printable(error)
