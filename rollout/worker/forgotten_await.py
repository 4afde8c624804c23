"""The error of an environment that used a coroutine where its result is needed, told as what it is."""

import inspect
import re
from collections.abc import Coroutine, Iterator
from traceback import walk_tb
from typing import Any

from rollout.errors import RolloutError
from rollout.records.wrong_types import describe_wrong_type

_NAMES_A_COROUTINE = re.compile(r"""['"]coroutine['"]|type coroutine|coroutine found""")
"""How Python writes that the value of this type was not the right one."""


class AwaitForgotten(RolloutError):
    """An environment called a coroutine without `await`, and used what it got."""


def explain_forgotten_await(error: BaseException) -> BaseException:
    """Return an `AwaitForgotten` with the same traceback if this is what the error comes from, or else the error."""
    if not (isinstance(error, AttributeError | TypeError) and _NAMES_A_COROUTINE.search(str(error))):
        return error
    unstarted = list(_unstarted_coroutines(error))
    found = describe_wrong_type(unstarted[0]) if unstarted else "a coroutine (write `await` before the call)"
    for coroutine in unstarted:
        coroutine.close()
    return AwaitForgotten(f"this line uses {found}: {error}.").with_traceback(error.__traceback__)


def _unstarted_coroutines(error: BaseException) -> Iterator[Coroutine[Any, Any, Any]]:
    """Yield those in the variables of the frames that the error passed through, of the innermost frame first."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
                yield value
