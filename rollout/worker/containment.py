"""What prevents one rollout from ending or blocking its whole process.

Forks are refused. Attempts to exit, and too much output, become errors. An environment that holds the event loop for
too long is interrupted. All of this is for processes that only play rollouts.
"""

import asyncio
import io
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Self, TextIO, TypeVar

_MAX_OUTPUT_CHARS = 16 << 20
"""Characters that one attempt may print."""

_CHECK_INTERVAL = 0.5
_OWN_MODULE_PREFIXES = ("rollout.", "transports.", "renderers_adapter.")
_ENVIRONMENT_CALLER_PREFIXES = ("rollout.environments.", "rollout.worker.attempt.", "rollout.worker.process.")
"""Those of our modules that call environments or are environments.

If the innermost frame of our code belongs to one of them, an environment runs.
"""


class ForkRefused(RuntimeError):
    """An environment forked the worker."""


class OutputFlood(RuntimeError):
    """An attempt printed more than it may."""


class ExitRefused(RuntimeError):
    """A task that an environment started tried to end the process."""


class EventLoopHeld(BaseException):
    """Raised inside an environment that held the event loop for too long. No `except Exception` may swallow it."""


@dataclass(slots=True)
class _OutputCounter:
    printed_chars: int = 0


_attempt_output: ContextVar[_OutputCounter | None] = ContextVar("output of this attempt", default=None)


def enter_attempt_context() -> None:
    """Mark this context, and the tasks and threads that it starts from now on, as parts of one attempt."""
    _attempt_output.set(_OutputCounter())


def refuse_forks() -> None:
    """Make os.fork() raise in this process from now on. Subprocesses still work, also multiprocessing with spawn."""
    sys.addaudithook(_refuse_fork)


def _refuse_fork(event: str, _: tuple[Any, ...]) -> None:
    if event in ("os.fork", "os.forkpty"):
        raise ForkRefused(
            "a fork of a worker would be a second worker with the same connections and files; "
            "use subprocess, or multiprocessing with the spawn method"
        )


_T = TypeVar("_T")


def refuse_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Prevent tasks that an attempt starts from ending the loop.

    asyncio lets SystemExit leave the event loop, even if somebody awaits the task.
    """
    loop.set_task_factory(_create_contained_task)


def _create_contained_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **task_options: Any) -> "asyncio.Task[Any]":
    if _attempt_output.get() is not None:
        coroutine = _convert_exits(coroutine)
    return asyncio.Task(coroutine, loop=loop, **task_options)


async def _convert_exits(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise ExitRefused(f"a task of this environment raised {error!r}") from error


class LimitedOutput(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr, and counts what each attempt prints."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        counter = _attempt_output.get()
        if counter is not None:
            counter.printed_chars += len(text)
            if counter.printed_chars > _MAX_OUTPUT_CHARS:
                raise OutputFlood(f"this attempt printed more than {_MAX_OUTPUT_CHARS >> 20} MiB")
        return self._inner.write(text)

    def flush(self) -> None:
        self._inner.flush()

    def fileno(self) -> int:
        return self._inner.fileno()

    @property
    def buffer(self) -> BinaryIO:
        return self._inner.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._inner.encoding


class LoopWatchdog:
    """Interrupts an environment that has held the event loop for `block_timeout` seconds.

    The loop must be that of the main thread. `stalled_seconds` says for how long the loop has not turned. A thread
    measures it, so the value is right even while the loop is blocked.
    """

    def __init__(self, block_timeout: float) -> None:
        self._block_timeout = block_timeout
        self._last_turn = time.monotonic()
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    @property
    def stalled_seconds(self) -> float:
        return max(0.0, time.monotonic() - self._last_turn - 2 * _CHECK_INTERVAL)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._previous_handler = signal.signal(signal.SIGUSR2, _interrupt_environment)
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
            if self.stalled_seconds > self._block_timeout:
                signal.pthread_kill(main_thread_id, signal.SIGUSR2)

    def _record_turn(self) -> None:
        self._last_turn = time.monotonic()


def _interrupt_environment(_: int, frame: FrameType | None) -> None:
    """Raise in an environment's code, but never in the middle of our own code that the environment called."""
    if _attempt_output.get() is None:
        return
    while frame is not None:
        module = f"{frame.f_globals.get('__name__')}."
        if module.startswith(_ENVIRONMENT_CALLER_PREFIXES) or frame.f_code is _convert_exits.__code__:
            break
        if module.startswith(_OWN_MODULE_PREFIXES):
            return
        frame = frame.f_back
    raise EventLoopHeld("this environment held up every rollout of its worker (worker.block_timeout)")
