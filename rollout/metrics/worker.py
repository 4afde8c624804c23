"""Records the metrics of one worker.

Other code calls a method here when something happens, such as the end of a turn. Values that the worker or the engine
client keep anyway are read when Prometheus collects the metrics.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.records.gateway_counts import RequestOutcome
from rollout.records.kinds import Step
from rollout.records.versions import version_number


class ReplicaState(Protocol):
    """The state of one engine in the engine client; see `rollout.engine.routing.Replica`."""

    @property
    def url(self) -> str:
        """The root URL of the engine."""

    @property
    def in_flight(self) -> int:
        """The number of requests that the engine has not answered yet."""

    @property
    def is_unavailable(self) -> bool:
        """Whether the client does not use the engine now, because the engine failed."""

    @property
    def total_ejections(self) -> int:
        """How many times the client stopped using the engine because the engine failed."""


class EngineClientState(Protocol):
    """The state of the engine client; see `rollout.engine.client.EngineClient`."""

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        """The states of all engines."""

    @property
    def retry_count(self) -> int:
        """The number of requests that were sent again."""


class CurrentPolicyVersion(Protocol):
    """The trainer's policy version; see `rollout.session.policy.PolicyVersionState`."""

    @property
    def current(self) -> str:
        """The name of the trainer's policy version."""


class WorkerMetrics:
    """Records the metrics of one worker in its own registry."""

    def __init__(self, environment: str) -> None:
        self.registry = CollectorRegistry()
        self._environment = environment
        # Metrics with fixed labels are kept here, because finding a label takes longer than counting.
        self._turns = cache(partial(catalogue.TURNS.counter(self.registry).labels, environment))
        self._prompt_tokens = catalogue.PROMPT_TOKENS.counter(self.registry).labels(environment)
        self._cached_tokens = catalogue.CACHED_TOKENS.counter(self.registry).labels(environment)
        self._sampled_tokens = catalogue.SAMPLED_TOKENS.counter(self.registry).labels(environment)
        self._turn_seconds = cache(partial(catalogue.TURN_SECONDS.histogram(self.registry).labels, environment))
        self._image_bytes = catalogue.IMAGE_BYTES.counter(self.registry).labels(environment)
        self._image_bytes_saved = catalogue.IMAGE_BYTES_SAVED.counter(self.registry).labels(environment)
        self._engine_seconds = cache(
            partial(catalogue.ENGINE_REQUEST_SECONDS.histogram(self.registry).labels, environment)
        )
        self._gateway_requests = cache(partial(catalogue.GATEWAY_REQUESTS.counter(self.registry).labels, environment))
        self._gateway_seconds = cache(
            partial(catalogue.GATEWAY_REQUEST_SECONDS.histogram(self.registry).labels, environment)
        )
        self._gateway_echoes = cache(partial(catalogue.GATEWAY_ECHOES.counter(self.registry).labels, environment))
        self._gateway_retries = cache(partial(catalogue.GATEWAY_RETRIES.counter(self.registry).labels, environment))
        self._gateway_connections = catalogue.GATEWAY_CONNECTIONS.gauge(self.registry).labels(environment)
        self._policy_lag = catalogue.POLICY_LAG.histogram(self.registry).labels(environment)
        self._attempt_retries = catalogue.ATTEMPT_RETRIES.counter(self.registry).labels(environment)
        self._admission_wait = catalogue.ADMISSION_WAIT.gauge(self.registry).labels(environment)
        self._admission_wait.set_function(self._admission_wait_seconds)
        self._waiting_since: float | None = None
        self.loop_monitor = LoopMonitor(catalogue.LOOP_LAG.histogram(self.registry).labels(environment).observe)
        catalogue.LOOP_STALLED.gauge(self.registry).labels(environment).set_function(
            lambda: self.loop_monitor.stalled_seconds
        )

    def export_state(
        self, get_in_flight: Callable[[], int], engines: EngineClientState, version: CurrentPolicyVersion
    ) -> None:
        """Also export the number of rollouts in flight, the state of the engines, and the trainer's policy version."""
        self.registry.register(_StateCollector((self._environment,), get_in_flight, engines, version))

    def record_retry(self) -> None:
        """Record the start of an attempt that repeats another one."""
        self._attempt_retries.inc()

    def record_images(self, given_bytes: int, *, stored_bytes: int) -> None:
        """Record the size of a turn's images; `stored_bytes` is the size of the new images, which were stored."""
        self._image_bytes.inc(given_bytes)
        self._image_bytes_saved.inc(given_bytes - stored_bytes)

    def record_turn(self, step: Step, sampled_tokens: int) -> None:
        """Record a turn, and how many versions its weights are behind the trainer's version when the turn started."""
        self._turns(step.prompt_source).inc()
        self._prompt_tokens.inc(step.prompt_length)
        self._cached_tokens.inc(step.cached_tokens or 0)
        self._sampled_tokens.inc(sampled_tokens)
        for stage, seconds in step.timings.items():
            self._turn_seconds(stage).observe(seconds)
        trainer_number = version_number(step.policy[0]) if step.policy is not None else None
        sampled_numbers = [number for span in step.versions if (number := version_number(span.version)) is not None]
        if trainer_number is not None and sampled_numbers:
            self._policy_lag.observe(max(0, trainer_number - min(sampled_numbers)))

    def record_engine_request(self, url: str, outcome: str, seconds: float) -> None:
        """Record the outcome and the duration of one try of a request to an engine."""
        self._engine_seconds(url, outcome).observe(seconds)

    def record_gateway_request(self, dialect: str, outcome: RequestOutcome, seconds: float) -> None:
        """Record the end of a program's request to the gateway, and its duration if the policy answered."""
        self._gateway_requests(dialect, outcome).inc()
        if outcome is RequestOutcome.OK:
            self._gateway_seconds(dialect).observe(seconds)

    def record_gateway_echo(self, dialect: str, echo: str) -> None:
        """Record how the earlier answers came back in a request: exact, normalised or foreign."""
        self._gateway_echoes(dialect, echo).inc()

    def record_gateway_retry(self, dialect: str) -> None:
        """Record a request that got the same turn as an earlier request with the same body."""
        self._gateway_retries(dialect).inc()

    @contextmanager
    def count_gateway_connection(self) -> Iterator[None]:
        """Count a connection of a program as open during a `with` block."""
        self._gateway_connections.inc()
        try:
            yield
        finally:
            self._gateway_connections.dec()

    @contextmanager
    def time_admission(self) -> Iterator[None]:
        """Measure the time of a `with` block in which the worker waits until the trajectories queue has room."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _admission_wait_seconds(self) -> float:
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since


@dataclass(frozen=True, slots=True, eq=False)
class _StateCollector(Collector):
    """Exports the values that the worker and the engine client keep themselves."""

    labels: tuple[str]
    get_in_flight: Callable[[], int]
    engines: EngineClientState
    version: CurrentPolicyVersion

    def collect(self) -> Iterator[Metric]:
        environment_labels = self.labels
        yield catalogue.ROLLOUTS_IN_FLIGHT.build_metric({environment_labels: self.get_in_flight()})
        yield catalogue.ENGINE_RETRIES.build_metric({environment_labels: self.engines.retry_count})
        number = version_number(self.version.current)
        yield catalogue.POLICY_VERSION.build_metric({} if number is None else {environment_labels: number})
        engines = {(*environment_labels, engine.url): engine for engine in self.engines.replicas}
        yield catalogue.ENGINE_EJECTIONS.build_metric(
            {labels: engine.total_ejections for labels, engine in engines.items()}
        )
        yield catalogue.ENGINE_EJECTED.build_metric(
            {labels: float(engine.is_unavailable) for labels, engine in engines.items()}
        )
        yield catalogue.ENGINE_REQUESTS_IN_FLIGHT.build_metric(
            {labels: engine.in_flight for labels, engine in engines.items()}
        )
