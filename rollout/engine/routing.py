"""Chooses the engine for the next request: the healthy engine with the least load, or the session's usual engine.

    replica = router.choose(session_id="rollout-7", avoid=())
    router.record_failure(replica)  # or router.record_answer(replica)

An engine that failed several times in a row is *ejected*: it gets no requests for a while, each time twice as long.
After that time, `choose` returns the engine to one caller, while its `is_unavailable` is still true. This caller must
check whether the engine works again, and then call `mark_available`. Meanwhile, all other callers get healthy engines.

An engine that refused a request because it is *paused* for new weights has not failed. For a short time, `choose`
returns it only if all other engines are paused or not healthy, too.

`require_version` sets the version of the weights that a trainer has pushed. From then on, every engine that is not
known to have that version or a newer one is unavailable in the same way.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from rollout.records.versions import version_satisfies

log = structlog.get_logger()

_FAILURES_BEFORE_EJECTION = 3
_MIN_EJECTION_SECONDS, _MAX_EJECTION_SECONDS = 1.0, 30.0
_PAUSED_SECONDS = 2.0
"""How long other engines are preferred to one that refused a request because it is paused."""
_MAX_LOAD_RATIO = 1.25
"""With affinity, a session uses another engine if the load of its usual engine exceeds the mean load this much."""


@dataclass(slots=True, eq=False)
class Replica:
    """One engine as its client sees it.

    Attributes:
        url: its root URL.
        in_flight: the number of requests of this client that the engine has not answered yet.
        answer_count: the number of requests that the engine answered.
        consecutive_failures: the number of requests that failed since the engine's last answer.
        consecutive_ejections: how many times it was ejected, or checked again, since it was last available.
        total_ejections: the number of times that the engine was ejected.
        unavailable_until: the time when the engine is checked again, by the router's clock; None: it is available.
        paused_until: the time until which other engines are preferred, by the router's clock, because this one refused
            a request while it was paused; None: it has refused none.
        version: the version of the weights that the engine last reported.
        max_model_len: the context length in tokens; None if the engine reported none.
        resolves_references: whether the engine has our plugin with the same layout; images are then sent as references.
    """

    url: str
    in_flight: int = 0
    answer_count: int = 0
    consecutive_failures: int = 0
    consecutive_ejections: int = 0
    total_ejections: int = 0
    unavailable_until: float | None = None
    paused_until: float | None = None
    version: str | None = None
    max_model_len: int | None = None
    resolves_references: bool = False

    @property
    def is_unavailable(self) -> bool:
        """Whether the engine was ejected, and no caller has found it available since."""
        return self.unavailable_until is not None


class Router:
    """Knows the load and the health of every engine. Its methods never wait. Use it in one event loop only."""

    def __init__(
        self, urls: Sequence[str], *, affinity: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.replicas = tuple(Replica(url) for url in dict.fromkeys(url.rstrip("/") for url in urls))
        if not self.replicas:
            raise ValueError("a router needs at least one engine")
        self.required_version: str | None = None
        self._affinity = affinity
        self._clock = clock

    def require_version(self, version: str | None) -> None:
        """Use only engines that have this version of the weights, or a newer one; None: any version."""
        if version == self.required_version:
            return
        self.required_version = version
        for replica in self.replicas:
            if replica.is_unavailable or not self.has_required_version(replica.version):
                replica.unavailable_until = self._clock()

    def has_required_version(self, version: str | None) -> bool:
        """Whether an engine with this version of the weights may be used now."""
        return self.required_version is None or version_satisfies(version, self.required_version)

    def choose(self, *, session_id: str, avoid: Collection[Replica] = ()) -> Replica:
        """Return the engine for the next request.

        Return an engine in `avoid` only if no other one is healthy, and a paused one only if all others are, too.
        """
        now = self._clock()
        due_for_recheck = next(
            (
                replica
                for replica in self.replicas
                if replica.unavailable_until is not None and replica.unavailable_until <= now
            ),
            None,
        )
        if due_for_recheck is not None:
            # No other caller gets this engine until this caller has checked it.
            due_for_recheck.consecutive_ejections += 1
            due_for_recheck.unavailable_until = now + _ejection_seconds(due_for_recheck.consecutive_ejections)
            return due_for_recheck
        healthy = [engine for engine in self.replicas if not engine.is_unavailable]
        if not healthy:
            return min(self.replicas, key=lambda engine: engine.unavailable_until or now)
        untried = _without(healthy, avoid)
        running = [engine for engine in untried if not self._is_paused(engine)] or untried
        return self._choose_by_affinity(session_id, running) if self._affinity else min(running, key=_load_order)

    def all_are_paused(self, *, avoid: Collection[Replica] = ()) -> bool:
        """Whether all engines that `choose` would return now have refused a request, because they are paused."""
        healthy = [engine for engine in self.replicas if not engine.is_unavailable]
        return all(self._is_paused(engine) for engine in _without(healthy, avoid))

    def mark_paused(self, replica: Replica) -> None:
        """Record that an engine refused a request, because it is paused for new weights."""
        replica.paused_until = self._clock() + _PAUSED_SECONDS

    def record_answer(self, replica: Replica) -> None:
        """Record that an engine answered a request."""
        replica.answer_count += 1
        replica.consecutive_failures = 0
        if replica.is_unavailable and self.has_required_version(replica.version):
            self.mark_available(replica)

    def record_failure(self, replica: Replica) -> None:
        """Record that a request failed at an engine; after several failures in a row, eject the engine."""
        replica.consecutive_failures += 1
        if replica.consecutive_failures >= _FAILURES_BEFORE_EJECTION and not replica.is_unavailable:
            self.eject(replica)

    def eject(self, replica: Replica) -> None:
        """Stop using an engine for a while."""
        replica.consecutive_ejections += 1
        replica.total_ejections += 1
        replica.unavailable_until = self._clock() + _ejection_seconds(replica.consecutive_ejections)
        log.warning("engine ejected", url=replica.url, seconds=_ejection_seconds(replica.consecutive_ejections))

    def mark_behind(self, replica: Replica) -> None:
        """Record that an engine does not have the required weights, and eject it."""
        if not replica.is_unavailable:
            self.eject(replica)

    def mark_available(self, replica: Replica) -> None:
        """Record that an engine can be used again."""
        log.info("engine returned", url=replica.url, version=replica.version)
        replica.consecutive_failures = replica.consecutive_ejections = 0
        replica.unavailable_until = None

    def _is_paused(self, replica: Replica) -> bool:
        return replica.paused_until is not None and self._clock() < replica.paused_until

    def _choose_by_affinity(self, session_id: str, replicas: Sequence[Replica]) -> Replica:
        """Return an engine by rendezvous hashing with bounded loads: if an engine fails, only its sessions move."""
        max_in_flight = 1 + _MAX_LOAD_RATIO * sum(replica.in_flight for replica in replicas) / len(replicas)
        ranked = sorted(replicas, key=lambda engine: _affinity_hash(session_id, engine.url))
        return next(engine for engine in ranked if engine.in_flight <= max_in_flight)


def _without(replicas: list[Replica], avoid: Collection[Replica]) -> list[Replica]:
    """Return the engines that are not in `avoid`; if there are none, all."""
    return [replica for replica in replicas if replica not in avoid] or replicas


def _load_order(replica: Replica) -> tuple[int, int]:
    return replica.in_flight, replica.answer_count


def _affinity_hash(session_id: str, url: str) -> bytes:
    return hashlib.blake2b(f"{session_id} {url}".encode(), digest_size=8).digest()


def _ejection_seconds(ejections: int) -> float:
    return exponential_pause(_MIN_EJECTION_SECONDS, _MAX_EJECTION_SECONDS, doublings=ejections - 1)


def exponential_pause(first: float, longest: float, *, doublings: int) -> float:
    """Return `first`, doubled `doublings` times, but at most `longest`. `doublings` may be thousands, after days."""
    return min(first * 2.0 ** min(doublings, 99), longest)
