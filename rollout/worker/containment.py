"""What keeps one rollout from taking its whole process along: forks are refused, exits and floods of output are turned
into errors, and an environment that holds the event loop for good is interrupted. For processes that do nothing but
play rollouts.
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

_OUTPUT_LIMIT = 16 << 20
"""Characters that one attempt may print."""

_LOOK = 0.5
_OURS = ("rollout.", "transports.", "renderers_adapter.")
_ENVIRONMENTS_BELOW = ("rollout.environments.", "rollout.worker.attempt.", "rollout.worker.process.")
"""Of our modules, those that run environments, or are ones: what they called last, when nothing else of ours is."""


class ForkRefused(RuntimeError):
    """An environment forked the worker."""


class OutputFlood(RuntimeError):
    """An attempt printed more than anybody will read."""


class ExitRefused(RuntimeError):
    """A task that an environment had started wanted to end the process."""


class EventLoopHeld(BaseException):
    """Raised inside an environment that held the event loop for too long. No `except Exception` may swallow it."""


@dataclass(slots=True)
class _Output:
    printed: int = 0


_output: ContextVar[_Output | None] = ContextVar("output of this attempt", default=None)


def begin_attempt() -> None:
    """From here on, this context and the tasks and threads that it starts belong to one attempt."""
    _output.set(_Output())


def refuse_forks() -> None:
    """Make os.fork() raise in this process, for good. Subprocesses, also spawned ones of multiprocessing, are fine."""
    sys.addaudithook(_refuse_fork)


def _refuse_fork(event: str, _: tuple[Any, ...]) -> None:
    if event in ("os.fork", "os.forkpty"):
        raise ForkRefused(
            "a fork of a worker would be a second worker with the same connections and files; "
            "use subprocess, or multiprocessing with the spawn method"
        )


_T = TypeVar("_T")


def refuse_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Let no task that an attempt starts end the loop: asyncio passes SystemExit on, past whoever awaits the task."""
    loop.set_task_factory(_start_contained)


def _start_contained(loop: asyncio.AbstractEventLoop, coroutine: Any, **told: Any) -> "asyncio.Task[Any]":
    if _output.get() is not None:
        coroutine = _without_exit(coroutine)
    return asyncio.Task(coroutine, loop=loop, **told)


async def _without_exit(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise ExitRefused(f"a task of this environment raised {error!r}") from error


class GuardedOutput(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr and counts what each attempt prints."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        output = _output.get()
        if output is not None:
            output.printed += len(text)
            if output.printed > _OUTPUT_LIMIT:
                raise OutputFlood(f"this attempt printed more than {_OUTPUT_LIMIT >> 20} MiB")
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
    """Interrupts an environment that has held the event loop for `patience` seconds. For the main thread's loop.

    `lag` is for how long the loop has not turned. A thread sees to that, so that a busy loop is told from a dead one.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._turned = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    @property
    def lag(self) -> float:
        return max(0.0, time.monotonic() - self._turned - 2 * _LOOK)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._previous = signal.signal(signal.SIGUSR2, _interrupt_environment)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        signal.signal(signal.SIGUSR2, self._previous)

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._stop.wait(_LOOK):
            self._loop.call_soon_threadsafe(self._turn)
            if self.lag > self._patience:
                signal.pthread_kill(main, signal.SIGUSR2)

    def _turn(self) -> None:
        self._turned = time.monotonic()


def _interrupt_environment(_: int, frame: FrameType | None) -> None:
    """Raise where an environment's code runs; our own code, which it may have called, is never cut in two."""
    if _output.get() is None:
        return
    while frame is not None:
        module = f"{frame.f_globals.get('__name__')}."
        if module.startswith(_ENVIRONMENTS_BELOW):
            break
        if module.startswith(_OURS):
            return
        frame = frame.f_back
    raise EventLoopHeld("this environment held up every rollout of its worker (worker.block_timeout)")
