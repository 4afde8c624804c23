"""What one worker measures while it plays, and the same as samples that its supervisor can add up.

Whoever does something tells it here in one call; what is counted anyway, by the worker and by the engine client, is
read when somebody asks.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import Pulse
from rollout.records.evidence import VersionSpan
from rollout.records.versions import version_number


class Counters(Protocol):
    """What a worker counts for itself; see `rollout.worker.worker.WorkerCounters`."""

    @property
    def in_flight(self) -> int: ...
    @property
    def status(self) -> Mapping[str, int]: ...
    @property
    def turns(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def queue_bytes(self) -> int: ...


class EngineState(Protocol):
    """What the client knows of one engine; see `rollout.engine.routing.Engine`."""

    @property
    def url(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def away(self) -> bool: ...
    @property
    def ejected(self) -> int: ...


class Engines(Protocol):
    """See `rollout.engine.client.EngineClient`."""

    @property
    def engines(self) -> Sequence[EngineState]: ...
    @property
    def retried(self) -> int: ...


class Version(Protocol):
    """The trainer's version of the policy; see `rollout.session.session.PolicyVersion`."""

    @property
    def current(self) -> str: ...


class WorkerMetrics:
    """Of the worker of one environment, in a registry of its own."""

    def __init__(self, environment: str) -> None:
        self.registry = CollectorRegistry()
        self._environment = environment
        # Looking a label up costs more than counting does.
        self._turns = cache(partial(catalogue.TURNS.counter(self.registry).labels, environment))
        self._prompt_tokens = catalogue.PROMPT_TOKENS.counter(self.registry).labels(environment)
        self._cached_tokens = catalogue.CACHED_TOKENS.counter(self.registry).labels(environment)
        self._sampled_tokens = catalogue.SAMPLED_TOKENS.counter(self.registry).labels(environment)
        self._turn_seconds = cache(partial(catalogue.TURN_SECONDS.histogram(self.registry).labels, environment))
        self._image_bytes = catalogue.IMAGE_BYTES.counter(self.registry).labels(environment)
        self._image_bytes_saved = catalogue.IMAGE_BYTES_SAVED.counter(self.registry).labels(environment)
        self._engine_seconds = cache(partial(catalogue.ENGINE_SECONDS.histogram(self.registry).labels, environment))
        self._policy_lag = catalogue.POLICY_LAG.histogram(self.registry).labels(environment)
        self._admission = catalogue.ADMISSION_WAIT.gauge(self.registry).labels(environment)
        self._admission.set_function(self._waited)
        self._waits_since: float | None = None
        self.pulse = Pulse(catalogue.LOOP_LAG.histogram(self.registry).labels(environment).observe)
        catalogue.LOOP_STALLED.gauge(self.registry).labels(environment).set_function(lambda: self.pulse.stalled)

    def read(self, counters: Counters, engines: Engines, version: Version) -> None:
        """Also export what these have come to whenever somebody asks."""
        self.registry.register(_Read((self._environment,), counters, engines, version))

    def images_given(self, nbytes: int, *, stored: int) -> None:
        """A turn brought images of so many bytes, of which so many were not there before."""
        self._image_bytes.inc(nbytes)
        self._image_bytes_saved.inc(nbytes - stored)

    def turn_done(
        self,
        prompt: str,
        *,
        prompt_tokens: int,
        cached_tokens: int | None,
        sampled_tokens: int,
        laps: Mapping[str, float],
    ) -> None:
        self._turns(prompt).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens or 0)
        self._sampled_tokens.inc(sampled_tokens)
        for stage, seconds in laps.items():
            self._turn_seconds(stage).observe(seconds)

    def policy_used(self, spans: Sequence[VersionSpan], trainers: str) -> None:
        """The weights that sampled a turn, which began when the trainer was at that version."""
        at = version_number(trainers)
        used = [number for span in spans if (number := version_number(span.version)) is not None]
        if at is not None and used:
            self._policy_lag.observe(max(0, at - min(used)))

    def engine_tried(self, url: str, outcome: str, seconds: float) -> None:
        """One try at one engine is over."""
        self._engine_seconds(url, outcome).observe(seconds)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """While the worker waits for room in the trajectories queue."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None

    def _waited(self) -> float:
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since


@dataclass(frozen=True, slots=True, eq=False)
class _Read(Collector):
    labels: tuple[str]
    counters: Counters
    engines: Engines
    version: Version

    def collect(self) -> Iterator[Metric]:
        mine, counters = self.labels, self.counters
        yield catalogue.ROLLOUTS.read({(*mine, status): n for status, n in dict(counters.status).items()})
        yield catalogue.FINISHED_TURNS.read({mine: counters.turns})
        yield catalogue.FINISHED_TOKENS.read({mine: counters.tokens})
        yield catalogue.FINISHED_IMAGES.read({mine: counters.images})
        yield catalogue.RECORD_BYTES.read({mine: counters.queue_bytes})
        yield catalogue.IN_FLIGHT.read({mine: counters.in_flight})
        yield catalogue.ATTEMPT_RETRIES.read({mine: counters.retries})
        yield catalogue.ENGINE_RETRIES.read({mine: self.engines.retried})
        number = version_number(self.version.current)
        yield catalogue.POLICY_VERSION.read({} if number is None else {mine: number})
        engines = {(*mine, engine.url): engine for engine in self.engines.engines}
        yield catalogue.ENGINE_EJECTIONS.read({labels: engine.ejected for labels, engine in engines.items()})
        yield catalogue.ENGINE_EJECTED.read({labels: float(engine.away) for labels, engine in engines.items()})
        yield catalogue.ENGINE_IN_FLIGHT.read({labels: engine.in_flight for labels, engine in engines.items()})
