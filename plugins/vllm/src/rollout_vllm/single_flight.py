"""A cache that does each piece of work once, however many ask for it at the same time.

Work that many wait for goes on while one of them is left, and is cancelled with the last. Only what was made whole is
kept: an error goes to those who waited for it, and whoever comes later starts anew.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from .errors import MaterialisationFailed


class Sized(Protocol):
    """What can be kept: immutable, and of a known size."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Origin(StrEnum):
    """Where a value came from: kept from earlier, made by another's flight, or made by one's own."""

    KEPT = "kept"
    JOINED = "joined"
    MADE = "made"


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: "asyncio.Task[T]"
    waiting: int = 0


class FlightCache(Generic[T]):
    """At most `max_bytes` of values, those used longest ago leave first. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._flights: dict[str, _Flight[T]] = {}
        self.nbytes = 0

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, Origin]:
        """The value under this key; `make` is called if nobody has it or is making it."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept, Origin.KEPT
        flight, origin = self._flights.get(key), Origin.JOINED
        if flight is None:
            flight, origin = _Flight(asyncio.ensure_future(self._fly(key, make))), Origin.MADE
            self._flights[key] = flight
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), origin
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Forgotten before it is cancelled: nobody may join a flight that will not arrive.
                del self._flights[key]
                flight.task.cancel()

    async def _fly(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        flight = self._flights[key]
        try:
            value = await make()
        except asyncio.CancelledError:
            if flight.waiting:
                # Nobody cancelled this flight, so those on it must not take themselves for cancelled.
                raise MaterialisationFailed("the work was cancelled from within") from None
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
        if flight.waiting:
            self._keep(key, value)
        return value

    def _keep(self, key: str, value: T) -> None:
        if value.nbytes > self._max_bytes:
            return
        self._kept[key] = value
        self.nbytes += value.nbytes
        while self.nbytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes
