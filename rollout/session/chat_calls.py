"""Tracks the calls of `chat` in one rollout, to find calls that were never awaited."""

import inspect
from collections.abc import Coroutine, Iterable
from typing import Any

from rollout.environments.base import Reply

ChatCall = Coroutine[Any, Any, Reply]


class ChatCalls:
    """Remembers the calls of `chat` until they are awaited."""

    def __init__(self) -> None:
        self._calls: list[ChatCall] = []

    def add(self, call: ChatCall) -> ChatCall:
        """Remember a call, and return it."""
        self._calls = [*_unawaited(self._calls), call]
        return call

    def close_unawaited(self) -> int:
        """Close the calls that were never awaited; their turns are not played. Return the number of these calls."""
        unawaited = _unawaited(self._calls)
        for call in unawaited:
            call.close()
        return len(unawaited)


def _unawaited(calls: Iterable[ChatCall]) -> list[ChatCall]:
    """Return the calls that have not been awaited."""
    return [call for call in calls if inspect.getcoroutinestate(call) == inspect.CORO_CREATED]
