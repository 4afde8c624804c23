"""The cache of a judge's answers, by the content of the question."""

import sys
from collections import OrderedDict

MAX_CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 256
"""About the size of a key and its entry in the dict."""


class AnswerCache:
    """Keeps answers up to a number and a size, and forgets the least recently used."""

    def __init__(self, max_count: int, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._answers: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> str | None:
        """Return the answer to a question, if it is kept."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def discard(self, key: bytes, answer: str) -> None:
        """Forget this answer, unless another one has replaced it."""
        if self._answers.get(key) == answer:
            self._n_bytes -= _size_of(self._answers.pop(key))

    def add(self, key: bytes, answer: str) -> None:
        """Keep an answer, and forget older ones that no longer fit."""
        if (replaced := self._answers.pop(key, None)) is not None:
            self._n_bytes -= _size_of(replaced)
        self._answers[key] = answer
        self._n_bytes += _size_of(answer)
        while len(self._answers) > self._max_count or self._n_bytes > self._max_bytes:
            _, forgotten = self._answers.popitem(last=False)
            self._n_bytes -= _size_of(forgotten)


def _size_of(answer: str) -> int:
    return sys.getsizeof(answer) + _ENTRY_BYTES
