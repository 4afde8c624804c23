"""Which engine gets the next request: a healthy one, the least loaded, or the one that knows the session.

    engine = router.choose(session="rollout-7", avoid=())
    router.failed(engine)  # or router.answered(engine)

An engine that failed several times in a row is *ejected* for a while, twice as long every time. Once that is over it is
offered again, marked as `away`: whoever gets it looks whether it is back (`returned`) before he relies on it, while
everybody else goes on with the healthy ones.

`require` names the version of the weights that a trainer has pushed. From then on every engine of which nobody knows
that it has that one, or a newer one, is away in the same sense, and returns once somebody has seen that it has.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from rollout.records.versions import satisfies

log = structlog.get_logger()

_FAILURES = 3
_SHORTEST, _LONGEST = 1.0, 30.0
_CROWDED = 1.25
"""With affinity, an engine with this many times the mean load passes a session on to the session's next choice."""


@dataclass(slots=True, eq=False)
class Engine:
    """One engine as its client sees it.

    `away_until` is set while it is ejected, `ejected` is how often it has been, `version` is what it told last.
    """

    url: str
    in_flight: int = 0
    answered: int = 0
    failures: int = 0
    ejections: int = 0
    ejected: int = 0
    away_until: float | None = None
    version: str | None = None
    max_model_len: int | None = None
    resolves_references: bool = False

    @property
    def away(self) -> bool:
        """Whether it was ejected and nobody saw it return."""
        return self.away_until is not None


class Router:
    """Knows the load and the health of every engine. All of it happens on one event loop, without waiting."""

    def __init__(
        self, urls: Sequence[str], *, affinity: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engines = tuple(Engine(url) for url in dict.fromkeys(url.rstrip("/") for url in urls))
        if not self.engines:
            raise ValueError("a router needs at least one engine")
        self.required: str | None = None
        self._affinity = affinity
        self._clock = clock

    def require(self, version: str | None) -> None:
        """From now on offer only engines that have these weights, or newer ones; None: whatever they have."""
        if version == self.required:
            return
        self.required = version
        for engine in self.engines:
            if engine.away or not self.suffices(engine.version):
                engine.away_until = self._clock()

    def suffices(self, version: str | None) -> bool:
        """Whether an engine with these weights may be used now."""
        return self.required is None or satisfies(version, self.required)

    def choose(self, *, session: str, avoid: Collection[Engine] = ()) -> Engine:
        """The engine for the next request; one in `avoid` only if there is no other."""
        now = self._clock()
        due = next(
            (engine for engine in self.engines if engine.away_until is not None and engine.away_until <= now), None
        )
        if due is not None:
            # Nobody else tries until this caller has looked.
            due.ejections += 1
            due.away_until = now + _away(due.ejections)
            return due
        healthy = [engine for engine in self.engines if not engine.away]
        if not healthy:
            return min(self.engines, key=lambda engine: engine.away_until or now)
        fresh = [engine for engine in healthy if engine not in avoid] or healthy
        return self._nearest(session, fresh) if self._affinity else min(fresh, key=_load)

    def answered(self, engine: Engine) -> None:
        """It answered a request."""
        engine.answered += 1
        engine.failures = 0
        if engine.away and self.suffices(engine.version):
            self.returned(engine)

    def failed(self, engine: Engine) -> None:
        """It did not answer, or gave up; too often in a row ejects it."""
        engine.failures += 1
        if engine.failures >= _FAILURES and not engine.away:
            self.eject(engine)

    def eject(self, engine: Engine) -> None:
        """Leave it out for a while."""
        engine.ejections += 1
        engine.ejected += 1
        engine.away_until = self._clock() + _away(engine.ejections)
        log.warning("engine ejected", url=engine.url, seconds=_away(engine.ejections))

    def behind(self, engine: Engine) -> None:
        """It was seen to have other weights than it must."""
        if not engine.away:
            self.eject(engine)

    def returned(self, engine: Engine) -> None:
        """It was seen to serve again."""
        log.info("engine returned", url=engine.url, version=engine.version)
        engine.failures = engine.ejections = 0
        engine.away_until = None

    def _nearest(self, session: str, engines: Sequence[Engine]) -> Engine:
        """Rendezvous hashing with bounded loads: no table, and only an absent engine's sessions move."""
        bound = 1 + _CROWDED * sum(engine.in_flight for engine in engines) / len(engines)
        ranked = sorted(engines, key=lambda engine: _affinity(session, engine.url))
        return next(engine for engine in ranked if engine.in_flight <= bound)


def _load(engine: Engine) -> tuple[int, int]:
    return engine.in_flight, engine.answered


def _affinity(session: str, url: str) -> bytes:
    return hashlib.blake2b(f"{session} {url}".encode(), digest_size=8).digest()


def _away(ejections: int) -> float:
    return doubled(_SHORTEST, _LONGEST, times=ejections - 1)


def doubled(shortest: float, longest: float, *, times: int) -> float:
    """A pause that doubles up to the longest; however often, for what is away for days comes to thousands of times."""
    return min(shortest * 2.0 ** min(times, 99), longest)
