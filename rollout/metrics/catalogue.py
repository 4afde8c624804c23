"""Every metric that a process of ours exports: its name, type, labels, and what it tells.

The names follow Prometheus' conventions: base units, `_total` for what only grows. A worker's metrics carry its
environment; a launch exports the same ones, summed over its workers (`combine` says where a sum would be nonsense).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry


class Kind(StrEnum):
    """The types of Prometheus that we use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, whatever its labels say. `name` is as it is scraped, a counter's `_total` included."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    tells: str
    buckets: tuple[float, ...] = ()
    combine: Literal["sum", "max"] = "sum"

    @property
    def base(self) -> str:
        """The name by which prometheus-client knows it."""
        return self.name.removesuffix("_total")

    def counter(self, registry: CollectorRegistry) -> Counter:
        return Counter(self.base, self.tells, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        return Gauge(self.base, self.tells, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        return Histogram(self.base, self.tells, self.labels, buckets=self.buckets, registry=registry)

    def read(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """A counter or a gauge with these values, by their labels, for a collector that reads them elsewhere."""
        made = CounterMetricFamily if self.kind is Kind.COUNTER else GaugeMetricFamily
        metric: Metric = made(self.base, self.tells, labels=self.labels)
        for labels, value in values.items():
            metric.add_metric(labels, value)  # type: ignore[attr-defined]
        return metric

    def tally(self, counted: Mapping[int, int], *labels: str) -> Metric:
        """A histogram of values that were counted elsewhere."""
        metric = HistogramMetricFamily(self.base, self.tells, labels=self.labels)
        limits = (*self.buckets, float("inf"))
        within = [(_bound(at), float(sum(n for value, n in counted.items() if value <= at))) for at in limits]
        metric.add_metric(labels, within, sum(value * n for value, n in counted.items()))
        return metric


def _bound(limit: float) -> str:
    return "+Inf" if limit == float("inf") else str(float(limit))


_WORK = ("environment",)
_ENGINE = ("environment", "engine")
_QUEUE = ("environment", "queue")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_VERSIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)

ROLLOUTS = Family(
    "rollout_rollouts_total", Kind.COUNTER, ("environment", "status"), "Rollouts that ended, by how they ended."
)
FINISHED_TURNS = Family("rollout_finished_turns_total", Kind.COUNTER, _WORK, "Turns of the rollouts that ended.")
FINISHED_TOKENS = Family(
    "rollout_finished_tokens_total", Kind.COUNTER, _WORK, "Tokens sampled in the rollouts that ended."
)
FINISHED_IMAGES = Family(
    "rollout_finished_images_total", Kind.COUNTER, _WORK, "Different images in the rollouts that ended."
)
RECORD_BYTES = Family(
    "rollout_record_bytes_total", Kind.COUNTER, _WORK, "Bytes of records put for attempts that ended."
)
IN_FLIGHT = Family("rollout_rollouts_in_flight", Kind.GAUGE, _WORK, "Rollouts that are being played.")
ATTEMPT_RETRIES = Family(
    "rollout_attempt_retries_total", Kind.COUNTER, _WORK, "Attempts that the infrastructure failed and another follows."
)
TURNS = Family(
    "rollout_turns_total",
    Kind.COUNTER,
    ("environment", "prompt"),
    "Turns that were sampled, lost attempts included, by where the prompt came from: bridge, or why it was rendered.",
)
PROMPT_TOKENS = Family("rollout_prompt_tokens_total", Kind.COUNTER, _WORK, "Tokens of the prompts of those turns.")
CACHED_TOKENS = Family(
    "rollout_cached_tokens_total", Kind.COUNTER, _WORK, "Those of them that the engine had in its prefix cache."
)
SAMPLED_TOKENS = Family("rollout_sampled_tokens_total", Kind.COUNTER, _WORK, "Tokens that were sampled.")
TURN_SECONDS = Family(
    "rollout_turn_seconds",
    Kind.HISTOGRAM,
    ("environment", "stage"),
    "Seconds that a turn spent in each stage: prepare, render, engine, parse.",
    _SECONDS,
)
IMAGE_BYTES = Family(
    "rollout_image_bytes_total", Kind.COUNTER, _WORK, "Encoded bytes of the images that environments handed in."
)
IMAGE_BYTES_SAVED = Family(
    "rollout_image_bytes_saved_total",
    Kind.COUNTER,
    _WORK,
    "Those of them that were stored before (images.mode offload).",
)
ENGINE_SECONDS = Family(
    "rollout_engine_request_seconds",
    Kind.HISTOGRAM,
    ("environment", "engine", "outcome"),
    "Seconds of each try at each engine; the outcome is ok, cancelled, or the name of the error.",
    _SECONDS,
)
ENGINE_RETRIES = Family("rollout_engine_retries_total", Kind.COUNTER, _WORK, "Requests that went out once more.")
ENGINE_EJECTIONS = Family(
    "rollout_engine_ejections_total", Kind.COUNTER, _ENGINE, "Times that a worker began to leave an engine out."
)
ENGINE_EJECTED = Family("rollout_engine_ejected", Kind.GAUGE, _ENGINE, "Workers that leave this engine out now.")
ENGINE_IN_FLIGHT = Family("rollout_engine_requests_in_flight", Kind.GAUGE, _ENGINE, "Requests that it has to answer.")
POLICY_VERSION = Family(
    "rollout_policy_version",
    Kind.GAUGE,
    _WORK,
    "The trainer's version of the policy, as workers know it.",
    combine="max",
)
POLICY_LAG = Family(
    "rollout_policy_lag_versions",
    Kind.HISTOGRAM,
    _WORK,
    "How many versions the weights that sampled a turn lie behind the trainer's.",
    _VERSIONS,
)
LOOP_LAG = Family(
    "rollout_event_loop_lag_seconds", Kind.HISTOGRAM, _WORK, "How much too late the event loop came to a timer.", _LAGS
)
LOOP_STALLED = Family(
    "rollout_event_loop_stalled_seconds",
    Kind.GAUGE,
    _WORK,
    "For how long the event loop has not turned; of several workers, the longest.",
    combine="max",
)
ADMISSION_WAIT = Family(
    "rollout_admission_wait_seconds",
    Kind.GAUGE,
    _WORK,
    "For how long a worker has waited for room in the trajectories queue; of several, the longest.",
    combine="max",
)

WORKERS = Family("rollout_workers", Kind.GAUGE, ("environment", "state"), "Workers of the launch: starting or ready.")
WORKER_DEATHS = Family("rollout_worker_deaths_total", Kind.COUNTER, _WORK, "Workers that ended without being told to.")
EXPECTED = Family("rollout_rollouts_expected", Kind.GAUGE, _WORK, "Rollouts that the run has in all.")
QUEUE_RECORDS = Family("rollout_queue_backlog_records", Kind.GAUGE, _QUEUE, "Records that are not acked.")
QUEUE_BYTES = Family("rollout_queue_backlog_bytes", Kind.GAUGE, _QUEUE, "Their bytes.")
QUEUE_AGE = Family("rollout_queue_oldest_age_seconds", Kind.GAUGE, _QUEUE, "For how long the oldest of them waits.")
QUEUE_REDELIVERIES = Family(
    "rollout_queue_redeliveries_total", Kind.COUNTER, _QUEUE, "Records that were delivered once more."
)
QUEUE_DEAD = Family("rollout_queue_dead_letters", Kind.GAUGE, _QUEUE, "Records that a consumer rejected.")
QUEUE_SILENCE = Family(
    "rollout_queue_silence_seconds", Kind.GAUGE, _QUEUE, "For how long the queue has not told its state."
)

TRAINER_TRAJECTORIES = Family(
    "rollout_trainer_trajectories_total",
    Kind.COUNTER,
    (),
    "Trajectories that were handed out, those in groups included.",
)
TRAINER_GROUPS = Family("rollout_trainer_groups_total", Kind.COUNTER, (), "Groups that were handed out.")
TRAINER_PARTIAL = Family(
    "rollout_trainer_partial_groups_total", Kind.COUNTER, (), "Groups that were given up before they were whole."
)
TRAINER_RECORDS = Family("rollout_trainer_records_total", Kind.COUNTER, (), "Records that came.")
TRAINER_BYTES = Family("rollout_trainer_bytes_total", Kind.COUNTER, (), "Their bytes.")
TRAINER_REDELIVERED = Family(
    "rollout_trainer_redelivered_records_total", Kind.COUNTER, (), "Those of them that had been delivered before."
)
TRAINER_DROPPED = Family(
    "rollout_trainer_dropped_records_total",
    Kind.COUNTER,
    (),
    "Duplicates: records of what was consumed already, or of a group that was given up.",
)
TRAINER_REJECTED = Family("rollout_trainer_rejected_records_total", Kind.COUNTER, (), "Records that cannot be decoded.")
TRAINER_STALE = Family(
    "rollout_trainer_stale_trajectories_total", Kind.COUNTER, (), "Trajectories dropped because of max_staleness."
)
TRAINER_UNFINISHED = Family(
    "rollout_trainer_unfinished_rollouts", Kind.GAUGE, (), "Rollouts of which something came, and not the end."
)
TRAINER_WAITING = Family(
    "rollout_trainer_waiting_trajectories", Kind.GAUGE, (), "Trajectories that are whole and were not handed out."
)
TRAINER_UNACKED = Family("rollout_trainer_unacked_records", Kind.GAUGE, (), "Records that no commit has acked yet.")
TRAINER_HELD = Family(
    "rollout_trainer_held_bytes", Kind.GAUGE, ("where",), "Steps of what was not handed out, in memory and on disk."
)
TRAINER_VERSION = Family("rollout_trainer_policy_version", Kind.GAUGE, (), "The trainer's version of the policy.")
TRAINER_STALENESS = Family(
    "rollout_trainer_staleness_versions",
    Kind.HISTOGRAM,
    (),
    "How many versions the oldest weights of a trajectory lay behind the trainer's when it was handed out.",
    _VERSIONS,
)
TRAINER_QUEUE_RECORDS = Family(
    "rollout_trainer_queue_backlog_records", Kind.GAUGE, (), "Records in the reader's queue that are not acked."
)
TRAINER_QUEUE_BYTES = Family("rollout_trainer_queue_backlog_bytes", Kind.GAUGE, (), "Their bytes.")
TRAINER_QUEUE_AGE = Family(
    "rollout_trainer_queue_oldest_age_seconds", Kind.GAUGE, (), "For how long the oldest of them waits."
)
TRAINER_QUEUE_SILENCE = Family(
    "rollout_trainer_queue_silence_seconds", Kind.GAUGE, (), "For how long the queue has not told its state."
)


def families() -> Iterator[Family]:
    """All of them, in the order of this file."""
    yield from (found for found in globals().values() if isinstance(found, Family))
