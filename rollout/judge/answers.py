"""A cache of a judge's answers."""

import sys
from collections import OrderedDict

MAX_CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 256
"""The approximate size of a key and its entry in the dict, in bytes."""


class AnswerCache:
    """Keeps a limited number and size of answers; it first removes those that were not used for the longest time."""

    def __init__(self, max_count: int, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._answers: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> str | None:
        """Return the stored answer to a question, or None."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def discard(self, key: bytes, answer: str) -> None:
        """Remove this answer to a question, unless another answer has replaced it."""
        if self._answers.get(key) == answer:
            self._n_bytes -= _size_of(self._answers.pop(key))

    def add(self, key: bytes, answer: str) -> None:
        """Store an answer, and remove old ones while the cache is over its limits."""
        if (replaced := self._answers.pop(key, None)) is not None:
            self._n_bytes -= _size_of(replaced)
        self._answers[key] = answer
        self._n_bytes += _size_of(answer)
        while len(self._answers) > self._max_count or self._n_bytes > self._max_bytes:
            _, forgotten = self._answers.popitem(last=False)
            self._n_bytes -= _size_of(forgotten)


def _size_of(answer: str) -> int:
    return sys.getsizeof(answer) + _ENTRY_BYTES
