"""A bounded cache in which many threads that miss the same key at once share one computation."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SingleFlightCache(Generic[Value]):
    """Keeps the most recently used values up to a total size; a size of zero keeps none, and still shares flights."""

    def __init__(self, max_size: int, size_of: Callable[[Value], int]) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._size = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._flights: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of this key; computed by whoever asks first, whose error everyone who waits gets too."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            flight = self._flights.get(key)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not is_mine:
            return flight.result()
        try:
            value = compute()
        except BaseException as error:
            flight.set_exception(error)
            with self._lock:
                del self._flights[key]
            raise
        flight.set_result(value)
        with self._lock:
            # In one step, so that nobody finds the key in neither place and computes it again.
            del self._flights[key]
            self._keep(key, value)
        return value

    def _keep(self, key: Hashable, value: Value) -> None:
        size = self._size_of(value)
        if size > self._max_size:
            return
        self._values[key] = value
        self._size += size
        while self._size > self._max_size:
            _, forgotten = self._values.popitem(last=False)
            self._size -= self._size_of(forgotten)
