"""A cache with a size limit, in which threads that need the same missing value compute it only once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SingleFlightCache(Generic[Value]):
    """Keeps the most recently used values up to a total size. With `max_size` 0, threads only share computations."""

    def __init__(self, max_size: int, size_of: Callable[[Value], int]) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._total_size = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._pending: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of a key. The first caller computes it, and others wait for its result or its error."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            pending = self._pending.get(key)
            must_compute = pending is None
            if pending is None:
                pending = self._pending[key] = Future()
        if not must_compute:
            return pending.result()
        try:
            value = compute()
        except BaseException as error:
            pending.set_exception(error)
            with self._lock:
                del self._pending[key]
            raise
        pending.set_result(value)
        with self._lock:
            # Change both dicts under one lock. Otherwise a thread could find the key in neither, and compute the value
            # again.
            del self._pending[key]
            self._store(key, value)
        return value

    def _store(self, key: Hashable, value: Value) -> None:
        size = self._size_of(value)
        if size > self._max_size:
            return
        self._values[key] = value
        self._total_size += size
        while self._total_size > self._max_size:
            _, evicted = self._values.popitem(last=False)
            self._total_size -= self._size_of(evicted)
