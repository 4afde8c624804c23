"""Explains errors of environments that forgot an `await` and used the coroutine instead of its result."""

import inspect
import re
from collections.abc import Coroutine, Iterator
from traceback import walk_tb
from typing import Any

from rollout.errors import RolloutError
from rollout.records.wrong_types import describe_wrong_type

_NAMES_A_COROUTINE = re.compile(r"""['"]coroutine['"]|type coroutine|coroutine found""")
"""Matches Python's messages about a coroutine that is used instead of another value."""


class AwaitForgotten(RolloutError):
    """An environment called a coroutine function without `await`, and used the coroutine as if it were the result."""


def explain_forgotten_await(error: BaseException) -> BaseException:
    """Return an `AwaitForgotten` with the same traceback if a forgotten `await` is the cause, otherwise the error."""
    if not (isinstance(error, AttributeError | TypeError) and _NAMES_A_COROUTINE.search(str(error))):
        return error
    unstarted = list(_unstarted_coroutines(error))
    found = describe_wrong_type(unstarted[0]) if unstarted else "a coroutine (write `await` before the call)"
    for coroutine in unstarted:
        coroutine.close()
    return AwaitForgotten(f"this line uses {found}: {error}.").with_traceback(error.__traceback__)


def _unstarted_coroutines(error: BaseException) -> Iterator[Coroutine[Any, Any, Any]]:
    """Yield the coroutines that were never started, from the variables of the error's frames, innermost frame first."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
                yield value
