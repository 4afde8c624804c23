"""Prevents one rollout from ending or blocking its whole process.

Forks are refused. Attempts to exit and too much output raise errors. An environment that blocks the event loop for too
long is interrupted. Only processes that do nothing but play rollouts use this module.
"""

import asyncio
import io
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Self, TextIO, TypeVar

_MAX_OUTPUT_CHARS = 16 << 20
"""The limit of characters that one attempt may print."""

_CHECK_INTERVAL = 0.5
_STUCK_FACTOR = 2
"""Code that cannot be interrupted counts as stuck if it runs for this number of block time-outs."""
_HURRIED_BLOCK_TIMEOUT = 2.0
_HURRIED_EXIT_TIMEOUT = 15.0
_OWN_MODULE_PREFIXES = ("rollout.", "transports.", "renderers_adapter.")
_ENVIRONMENT_CALLER_PREFIXES = (
    *("rollout.environments.", "rollout.worker.running.", "rollout.worker.attempt.", "rollout.worker.failures."),
    *("rollout.worker.scores.", "rollout.worker.closing.", "rollout.worker.resources.", "rollout.worker.process."),
    "rollout.launch.in_process.",
)
"""The names of our modules that call environments or contain environments.

If the innermost frame of our code is in one of these modules, the code that runs belongs to an environment.
"""
_INTERRUPTIBLE_PREFIXES = (
    *("rollout.value_limits.", "rollout.config.sampling.", "rollout.images.message_parts.", "rollout.session."),
    *("rollout.records.messages.", "rollout.records.tools.", "rollout.records.wire.", "rollout.records.wrong_types."),
    *("rollout.log.", "rollout.texts.", "renderers_adapter.", "transports.codec.", "rollout.gateway."),
)
"""The names of our modules that change only the state of one rollout. They may be interrupted, like environments.

The rollout that called the interrupted code must end, because its own state may be half changed.
"""


_ATTEMPT_FILES = tuple(str(Path(__file__).with_name(name)) for name in ("attempt.py", "running.py"))


class ForkRefused(RuntimeError):
    """An environment tried to fork the worker's process."""


class OutputFlood(RuntimeError):
    """An attempt printed more characters than allowed."""


class ExitRefused(RuntimeError):
    """A task that an environment started tried to end the process."""


class EventLoopHeld(BaseException):
    """Raised inside an environment that blocked the event loop for too long. `except Exception` does not catch it."""


@dataclass(slots=True)
class _AttemptContext:
    close: Callable[[], object]
    max_printed_chars: float = _MAX_OUTPUT_CHARS
    printed_chars: int = 0


_attempt_context: ContextVar[_AttemptContext | None] = ContextVar("the attempt that runs", default=None)


def enter_attempt_context(close: Callable[[], object]) -> None:
    """Mark this context, and the tasks and threads that it starts from now on, as parts of one attempt.

    `close` is called if our own code is interrupted while it works for this attempt. It must refuse all further turns.
    """
    _attempt_context.set(_AttemptContext(close))


def enter_shared_context() -> None:
    """Mark this context as the context of `shared`, which is treated as an attempt without a limit of output."""
    _attempt_context.set(_AttemptContext(lambda: None, math.inf))


def refuse_forks() -> None:
    """Make os.fork() raise ForkRefused in this process from now on.

    `subprocess`, and `multiprocessing` with the spawn method, still work.
    """
    sys.addaudithook(_refuse_fork)


def _refuse_fork(event: str, _: tuple[Any, ...]) -> None:
    if event in ("os.fork", "os.forkpty"):
        raise ForkRefused(
            "a worker cannot be forked, because two processes would then use the same connections and files; "
            "use subprocess, or multiprocessing with the spawn method"
        )


_T = TypeVar("_T")


def refuse_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Make SystemExit and KeyboardInterrupt in a task of an attempt raise ExitRefused.

    Otherwise they would end the event loop, even if other code awaits the task.
    """
    loop.set_task_factory(_create_contained_task)


def _create_contained_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **task_options: Any) -> "asyncio.Task[Any]":
    if _attempt_context.get() is not None:
        coroutine = _convert_exits(coroutine)
    return asyncio.Task(coroutine, loop=loop, **task_options)


async def _convert_exits(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise ExitRefused(
            f"a task of this environment raised {error!r}, which would end the worker; raise an ordinary exception"
        ) from error


class LimitedOutput(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr, and limits the number of characters that each attempt prints."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`; raises OutputFlood if the attempt prints too much."""
        counter = _attempt_context.get()
        if counter is not None:
            counter.printed_chars += len(text)
            if counter.printed_chars > counter.max_printed_chars:
                raise OutputFlood(f"this attempt printed more than its limit of {_MAX_OUTPUT_CHARS:,} characters")
        return self._inner.write(text)

    def flush(self) -> None:
        """See `io.TextIOBase.flush`."""
        self._inner.flush()

    def fileno(self) -> int:
        """See `io.TextIOBase.fileno`."""
        return self._inner.fileno()

    @property
    def buffer(self) -> BinaryIO:
        """The buffer of the replaced stream."""
        return self._inner.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the replaced stream."""
        return self._inner.encoding


class LoopWatchdog:
    """Interrupts an environment, or our code that works for one, if it blocks the event loop for too long.

    Code that changes the state of several rollouts, such as a queue, is not interrupted. If it still runs after twice
    the time-out, it counts as stuck, and `on_stuck` is called. Without `on_stuck`, stuck code is interrupted too.

    Args:
        block_timeout: the seconds for which code may block the event loop. The loop must run in the main thread.
        on_stuck: called with a text that says which code is stuck, in the thread of the watchdog.
    """

    def __init__(self, block_timeout: float, on_stuck: Callable[[str], object] | None = None) -> None:
        self._block_timeout = block_timeout
        self._on_stuck = on_stuck
        self._hurried_at: float | None = None
        self._last_turn = time.monotonic()
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    @property
    def stalled_seconds(self) -> float:
        """The seconds since the event loop last ran. A thread measures them, also while the loop is blocked."""
        return max(0.0, time.monotonic() - self._last_turn - 2 * _CHECK_INTERVAL)

    @property
    def _is_overdue(self) -> bool:
        return self.stalled_seconds > _STUCK_FACTOR * self._block_timeout

    def hurry(self) -> None:
        """Interrupt blocking code sooner from now on, because the process should end.

        If the code does not stop, the process ends without waiting for it.
        """
        self._block_timeout = min(self._block_timeout, _HURRIED_BLOCK_TIMEOUT)
        self._hurried_at = self._hurried_at or time.monotonic()

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._previous_handler = signal.signal(signal.SIGUSR2, self._interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_requested.set()
        self._thread.join()
        signal.signal(signal.SIGUSR2, self._previous_handler)

    def _watch(self) -> None:
        main_thread_id = threading.main_thread().ident
        assert main_thread_id is not None
        while not self._stop_requested.wait(_CHECK_INTERVAL):
            self._loop.call_soon_threadsafe(self._record_turn)
            if (
                self._hurried_at is not None
                and time.monotonic() - max(self._last_turn, self._hurried_at) > _HURRIED_EXIT_TIMEOUT
            ):
                os.write(2, b"rollout: the code that blocks the event loop does not stop, so the process ends now.\n")
                os._exit(128 + signal.SIGTERM)
            if self.stalled_seconds > self._block_timeout:
                signal.pthread_kill(main_thread_id, signal.SIGUSR2)
            if self._is_overdue and self._on_stuck is not None:
                frame = sys._current_frames().get(main_thread_id)
                if (where := _describe_own_code(frame)) is not None:
                    self._on_stuck(f"{where} has blocked the event loop for {self.stalled_seconds:.0f} s")

    def _record_turn(self) -> None:
        self._last_turn = time.monotonic()

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        attempt = _attempt_context.get()
        if attempt is None:
            return
        module = _innermost_own_module(frame)
        if module is None or module.startswith(_ENVIRONMENT_CALLER_PREFIXES):
            raise EventLoopHeld(
                "this environment blocked the event loop, and so all rollouts of its worker, for too long "
                "(worker.block_timeout); run slow code in a thread or a process"
            )
        if module.startswith(_INTERRUPTIBLE_PREFIXES) or (self._on_stuck is None and self._is_overdue):
            attempt.close()
            raise EventLoopHeld(
                "the data that this environment gave to the model took too long to process and blocked all "
                f"rollouts of its worker (worker.block_timeout). Our code was interrupted in {module.rstrip('.')}. "
                "Give the model less data"
            )


def _innermost_own_module(frame: FrameType | None) -> str | None:
    """Return the name of the module of the innermost frame of our code, plus a dot; None if there is no such frame."""
    while frame is not None and frame.f_code is not _convert_exits.__code__:
        module = f"{frame.f_globals.get('__name__')}."
        if module.startswith(_OWN_MODULE_PREFIXES):
            return module
        frame = frame.f_back
    return None


def _describe_own_code(frame: FrameType | None) -> str | None:
    """Return a text with the place where our own code works for a rollout; None if other code runs."""
    module = _innermost_own_module(frame)
    if module is None or module.startswith(_ENVIRONMENT_CALLER_PREFIXES):
        return None
    summary = traceback.extract_stack(frame)
    if not any(entry.filename in (*_ATTEMPT_FILES, __file__) for entry in summary):
        return None
    return f"{module.rstrip('.')} ({summary[-1].filename}, line {summary[-1].lineno}), which works for one rollout,"
