"""Keeps the requests of one endpoint that are being answered, or whose answer the program has not received.

The same request gets the same turn while the first one is in flight, and also if its answer was lost. A client that
repeats a request after an error sends the same body, and no header that could tell.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from rollout.gateway.deliveries import Deliveries
from rollout.gateway.dialects.base import Answer, Dialect, RequestRefused, TurnRequest, rollout_ended
from rollout.gateway.dialects.request_body import RequestBody, hash_bytes
from rollout.records.endings import RolloutLimit

_MAX_KEPT_ANSWERS = 128
"""The maximum number of answers that are kept for requests that are repeated. An echo shows that one is not needed."""


class Flight:
    """One request, from its body to its answer. Several connections may wait for it.

    Attributes:
        dialect: the dialect of the request.
        request: the request; None if its body could not be read.
        answer: the answer; None before it is there, or if there is a refusal.
        refusal: why there is no answer; None if there is one, or none yet.
        ready: set when only the engine is still to answer, or when there is an answer or a refusal.
        done: set when there is an answer or a refusal.
        turns: the turns that were played for the answer.
        is_cancelled: whether its task was cancelled, because nobody waits for the answer.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.request: TurnRequest | None = None
        self.answer: Answer | None = None
        self.refusal: RequestRefused | None = None
        self.ready = asyncio.Event()
        self.done = asyncio.Event()
        self.turns: list[int] = []
        self.is_cancelled = False
        self._waiters = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, play: Callable[["Flight"], Coroutine[Any, Any, None]]) -> None:
        """Start the task that plays the request, in the current context."""
        self._task = asyncio.get_running_loop().create_task(self._run(play))

    async def _run(self, play: Callable[["Flight"], Coroutine[Any, Any, None]]) -> None:
        try:
            await play(self)
        finally:
            self.ready.set()
            self.done.set()

    @property
    def is_committed(self) -> bool:
        """Whether the turns of all choices are committed, so that the answer will be there at once."""
        return self.request is not None and len(self.turns) >= self.request.choices

    @property
    def has_waiters(self) -> bool:
        """Whether a connection waits for the answer, or is being sent it."""
        return self._waiters > 0

    @property
    def limit(self) -> RolloutLimit:
        """The limit of the rollout that is used up, if the answer is not the policy's."""
        return RolloutLimit.NONE if self.answer is None else self.answer.limit

    def raise_refusal(self) -> None:
        """Raise the refusal, if there is one."""
        if self.answer is None:
            raise rollout_ended() if self.refusal is None else self.refusal.copy()

    def refuse(self, refusal: RequestRefused) -> None:
        """Set why there is no answer."""
        self.refusal = refusal.copy()

    def written_answer(self) -> bytes:
        """Return the answer as JSON."""
        assert self.request is not None
        assert self.answer is not None
        return self.dialect.write_answer(self.request, self.answer)

    def written_events(self) -> Iterable[bytes]:
        """Return the answer as server-sent events."""
        assert self.request is not None
        assert self.answer is not None
        return self.dialect.write_events(self.request, self.answer)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wait for the answer in a `with` block. If nobody waits any more, an uncommitted turn is cancelled."""
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1
            if not self._waiters and not self.turns:
                self.cancel()

    def forget_answer(self) -> None:
        """Free the memory of the request and its answer; the same request is a new one from now on."""
        self.request = self.answer = self._task = None

    def cancel(self) -> None:
        """Cancel the request at the engine, if there is no answer yet."""
        if self._task is not None and not self.done.is_set():
            self.is_cancelled = True
            self._task.cancel()

    async def ended(self) -> None:
        """Wait until the task that plays the request has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])


class Flights:
    """The requests of one endpoint."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        self._flights: dict[tuple[object, ...], Flight] = {}
        self._kept: list[Flight] = []
        """The flights whose answer is not there yet, or may be asked for again; oldest first."""

    def find_or_add(self, dialect: Dialect, body: RequestBody) -> tuple[Flight, bool]:
        """Return the flight of a request, and whether it is new, so that the caller must start it."""
        fingerprint = (dialect.name, len(body.data), hash_bytes(b"".join(body.blocks)))
        known = self._flights.get(fingerprint)
        if known is not None and not self._is_over(known):
            return known, False
        if known is not None:
            self._deliveries.mark_asked_again(known.turns)
        self._forget_answers()
        flight = self._flights[fingerprint] = Flight(dialect)
        self._kept.append(flight)
        return flight, True

    def _is_over(self, flight: Flight) -> bool:
        """Whether a new request with the same body gets a new turn."""
        if not flight.done.is_set():
            return flight.is_cancelled
        return flight.answer is None or not flight.turns or self._deliveries.were_received(flight.turns)

    def _forget_answers(self) -> None:
        """Forget the answers that were repeated, and the oldest ones if there are too many."""
        excess = len(self._kept) - _MAX_KEPT_ANSWERS
        kept = []
        for flight in self._kept:
            unneeded = flight.answer is None or not flight.turns or self._deliveries.were_echoed(flight.turns)
            if flight.done.is_set() and not flight.has_waiters and (unneeded or excess > 0):
                flight.forget_answer()
                excess -= 1
            else:
                kept.append(flight)
        self._kept = kept

    async def close(self) -> None:
        """Cancel all requests that are at the engine, and wait until all in flight have ended."""
        running = [flight for flight in self._kept if not flight.done.is_set()]
        for flight in running:
            if not flight.is_committed:
                flight.cancel()
        for flight in running:
            await flight.ended()
