"""Every metric that our processes export: its name, type, labels and meaning.

The names follow Prometheus' conventions: base units, and `_total` for what only grows. A worker's metrics have its
environment as a label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry


class MetricType(StrEnum):
    """The types of Prometheus that we use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: the name that Prometheus reads, with the `_total` of a counter.
        metric_type: its type.
        label_names: the names of its labels.
        description: what it measures.
        buckets: the upper bounds of a histogram's buckets.
    """

    name: str
    metric_type: MetricType
    label_names: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def base_name(self) -> str:
        """The name by which prometheus-client knows it."""
        return self.name.removesuffix("_total")

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Create the counter in a registry."""
        return Counter(self.base_name, self.description, self.label_names, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """Create the gauge in a registry."""
        return Gauge(self.base_name, self.description, self.label_names, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Create the histogram in a registry."""
        return Histogram(self.base_name, self.description, self.label_names, buckets=self.buckets, registry=registry)

    def build_metric(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """Build a counter or a gauge from values that a collector read elsewhere, by the values of their labels."""
        family_class = CounterMetricFamily if self.metric_type is MetricType.COUNTER else GaugeMetricFamily
        metric: Metric = family_class(self.base_name, self.description, labels=self.label_names)
        for label_values, value in values.items():
            metric.add_metric(label_values, value)  # type: ignore[attr-defined]
        return metric

    def build_histogram(self, value_counts: Mapping[int, int], *label_values: str) -> Metric:
        """Build a histogram from values that were counted elsewhere: how often each value occurred."""
        metric = HistogramMetricFamily(self.base_name, self.description, labels=self.label_names)
        upper_bounds = (*self.buckets, float("inf"))
        cumulative_buckets = [
            (
                _format_bound(upper_bound),
                float(sum(count for value, count in value_counts.items() if value <= upper_bound)),
            )
            for upper_bound in upper_bounds
        ]
        metric.add_metric(label_values, cumulative_buckets, sum(value * n for value, n in value_counts.items()))
        return metric


def _format_bound(upper_bound: float) -> str:
    return "+Inf" if upper_bound == float("inf") else str(float(upper_bound))


_ENVIRONMENT_LABELS = ("environment",)
_ENGINE_LABELS = ("environment", "engine")
_QUEUE_LABELS = ("environment", "queue")
_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LOOP_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_VERSION_LAG_BUCKETS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)

ROLLOUTS = MetricSpec(
    "rollout_rollouts_total", MetricType.COUNTER, ("environment", "status"), "Rollouts that ended, by status."
)
FINISHED_TURNS = MetricSpec(
    "rollout_finished_turns_total", MetricType.COUNTER, _ENVIRONMENT_LABELS, "Turns of the rollouts that ended."
)
FINISHED_TOKENS = MetricSpec(
    "rollout_finished_tokens_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Tokens sampled in the rollouts that ended.",
)
FINISHED_IMAGES = MetricSpec(
    "rollout_finished_images_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Different images in the rollouts that ended.",
)
RECORD_BYTES = MetricSpec(
    "rollout_record_bytes_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Bytes of the records of the rollouts that ended.",
)
ROLLOUTS_IN_FLIGHT = MetricSpec(
    "rollout_rollouts_in_flight", MetricType.GAUGE, _ENVIRONMENT_LABELS, "Rollouts that are being played."
)
ATTEMPT_RETRIES = MetricSpec(
    "rollout_attempt_retries_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Attempts that followed one that the infrastructure failed, whose worker died, or whose environment raised Retry.",
)
TURNS = MetricSpec(
    "rollout_turns_total",
    MetricType.COUNTER,
    ("environment", "prompt"),
    "Sampled turns, lost attempts included, by the source of the prompt: bridge, or why it was rendered.",
)
PROMPT_TOKENS = MetricSpec(
    "rollout_prompt_tokens_total", MetricType.COUNTER, _ENVIRONMENT_LABELS, "Tokens of the prompts of those turns."
)
CACHED_TOKENS = MetricSpec(
    "rollout_cached_tokens_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Prompt tokens that the engine had in its prefix cache.",
)
SAMPLED_TOKENS = MetricSpec(
    "rollout_sampled_tokens_total", MetricType.COUNTER, _ENVIRONMENT_LABELS, "Tokens that were sampled."
)
TURN_SECONDS = MetricSpec(
    "rollout_turn_seconds",
    MetricType.HISTOGRAM,
    ("environment", "stage"),
    "Seconds that a turn spent in each stage: prepare, render, engine, parse.",
    _DURATION_BUCKETS,
)
IMAGE_BYTES = MetricSpec(
    "rollout_image_bytes_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Encoded bytes of the images in the messages of environments.",
)
IMAGE_BYTES_SAVED = MetricSpec(
    "rollout_image_bytes_saved_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Bytes of these images that were already stored (images.mode offload).",
)
ENGINE_REQUEST_SECONDS = MetricSpec(
    "rollout_engine_request_seconds",
    MetricType.HISTOGRAM,
    ("environment", "engine", "outcome"),
    "Seconds of each try at each engine; the outcome is ok, cancelled, or the name of the error.",
    _DURATION_BUCKETS,
)
ENGINE_RETRIES = MetricSpec(
    "rollout_engine_retries_total", MetricType.COUNTER, _ENVIRONMENT_LABELS, "Requests that were sent again."
)
ENGINE_EJECTIONS = MetricSpec(
    "rollout_engine_ejections_total",
    MetricType.COUNTER,
    _ENGINE_LABELS,
    "How often the worker stopped using an engine because it failed.",
)
ENGINE_EJECTED = MetricSpec(
    "rollout_engine_ejected",
    MetricType.GAUGE,
    _ENGINE_LABELS,
    "1 while the worker sends this engine no requests because it failed, otherwise 0.",
)
ENGINE_REQUESTS_IN_FLIGHT = MetricSpec(
    "rollout_engine_requests_in_flight",
    MetricType.GAUGE,
    _ENGINE_LABELS,
    "Requests that the engine has not answered yet.",
)
POLICY_VERSION = MetricSpec(
    "rollout_policy_version",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "The trainer's version of the policy, as the worker knows it.",
)
POLICY_LAG = MetricSpec(
    "rollout_policy_lag_versions",
    MetricType.HISTOGRAM,
    _ENVIRONMENT_LABELS,
    "How many versions the weights that sampled a turn are behind the trainer's.",
    _VERSION_LAG_BUCKETS,
)
LOOP_LAG = MetricSpec(
    "rollout_event_loop_lag_seconds",
    MetricType.HISTOGRAM,
    _ENVIRONMENT_LABELS,
    "How late the event loop reached a timer.",
    _LOOP_LAG_BUCKETS,
)
LOOP_STALLED = MetricSpec(
    "rollout_event_loop_stalled_seconds",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "For how long the event loop has not run.",
)
ADMISSION_WAIT = MetricSpec(
    "rollout_admission_wait_seconds",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "For how long the worker has waited for room in the trajectories queue.",
)

WORKERS = MetricSpec(
    "rollout_workers", MetricType.GAUGE, ("environment", "state"), "Workers of the launch: starting or ready."
)
WORKER_DEATHS = MetricSpec(
    "rollout_worker_deaths_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Workers that ended although nobody stopped them.",
)
ROLLOUTS_EXPECTED = MetricSpec(
    "rollout_rollouts_expected", MetricType.GAUGE, _ENVIRONMENT_LABELS, "Rollouts that the run plays in all."
)
QUEUE_BACKLOG_RECORDS = MetricSpec(
    "rollout_queue_backlog_records", MetricType.GAUGE, _QUEUE_LABELS, "Records that are not acked."
)
QUEUE_BACKLOG_BYTES = MetricSpec(
    "rollout_queue_backlog_bytes", MetricType.GAUGE, _QUEUE_LABELS, "Bytes of the records that are not acked."
)
QUEUE_OLDEST_AGE = MetricSpec(
    "rollout_queue_oldest_age_seconds",
    MetricType.GAUGE,
    _QUEUE_LABELS,
    "For how long the oldest of these records has waited.",
)
QUEUE_REDELIVERIES = MetricSpec(
    "rollout_queue_redeliveries_total", MetricType.COUNTER, _QUEUE_LABELS, "Records that were delivered again."
)
QUEUE_DEAD_LETTERS = MetricSpec(
    "rollout_queue_dead_letters", MetricType.GAUGE, _QUEUE_LABELS, "Records that a consumer rejected."
)
QUEUE_REFUSED_MESSAGES = MetricSpec(
    "rollout_queue_refused_messages_total",
    MetricType.COUNTER,
    _QUEUE_LABELS,
    "Messages that the hub of a zmq:// queue refused.",
)
QUEUE_SILENCE = MetricSpec(
    "rollout_queue_silence_seconds", MetricType.GAUGE, _QUEUE_LABELS, "For how long the queue has not answered."
)

TRAINER_TRAJECTORIES = MetricSpec(
    "rollout_trainer_trajectories_total",
    MetricType.COUNTER,
    (),
    "Trajectories that the reader returned, those in groups included.",
)
TRAINER_GROUPS = MetricSpec("rollout_trainer_groups_total", MetricType.COUNTER, (), "Groups that the reader returned.")
TRAINER_PARTIAL_GROUPS = MetricSpec(
    "rollout_trainer_partial_groups_total",
    MetricType.COUNTER,
    (),
    "Groups that the reader gave up before they were complete.",
)
TRAINER_RECORDS = MetricSpec(
    "rollout_trainer_records_total", MetricType.COUNTER, (), "Records that the reader received."
)
TRAINER_BYTES = MetricSpec(
    "rollout_trainer_bytes_total", MetricType.COUNTER, (), "Bytes of the records that the reader received."
)
TRAINER_REDELIVERED_RECORDS = MetricSpec(
    "rollout_trainer_redelivered_records_total",
    MetricType.COUNTER,
    (),
    "Received records that had been delivered before.",
)
TRAINER_DROPPED_RECORDS = MetricSpec(
    "rollout_trainer_dropped_records_total",
    MetricType.COUNTER,
    (),
    "Duplicates: records of a rollout that was consumed, or of a group that was given up.",
)
TRAINER_REJECTED_RECORDS = MetricSpec(
    "rollout_trainer_rejected_records_total", MetricType.COUNTER, (), "Records that cannot be decoded."
)
TRAINER_STALE_TRAJECTORIES = MetricSpec(
    "rollout_trainer_stale_trajectories_total", MetricType.COUNTER, (), "Trajectories dropped because of max_staleness."
)
TRAINER_HELD_BACK_TRAJECTORIES = MetricSpec(
    "rollout_trainer_held_back_trajectories_total",
    MetricType.COUNTER,
    (),
    "Trajectories with a score that do not train, because of untrained_limits.",
)
TRAINER_UNFINISHED_ROLLOUTS = MetricSpec(
    "rollout_trainer_unfinished_rollouts",
    MetricType.GAUGE,
    (),
    "Rollouts that have records and no finished record yet.",
)
TRAINER_WAITING_TRAJECTORIES = MetricSpec(
    "rollout_trainer_waiting_trajectories",
    MetricType.GAUGE,
    (),
    "Complete trajectories that the reader has not returned yet.",
)
TRAINER_UNACKED_RECORDS = MetricSpec(
    "rollout_trainer_unacked_records", MetricType.GAUGE, (), "Records that no commit has acked yet."
)
TRAINER_HELD_BYTES = MetricSpec(
    "rollout_trainer_held_bytes",
    MetricType.GAUGE,
    ("where",),
    "Bytes of the steps of unreturned trajectories, in memory and on disk.",
)
TRAINER_POLICY_VERSION = MetricSpec(
    "rollout_trainer_policy_version", MetricType.GAUGE, (), "The trainer's version of the policy."
)
TRAINER_STALENESS = MetricSpec(
    "rollout_trainer_staleness_versions",
    MetricType.HISTOGRAM,
    (),
    "How many versions the oldest weights of a trajectory were behind the trainer's when it was returned.",
    _VERSION_LAG_BUCKETS,
)
TRAINER_QUEUE_BACKLOG_RECORDS = MetricSpec(
    "rollout_trainer_queue_backlog_records", MetricType.GAUGE, (), "Records in the reader's queue that are not acked."
)
TRAINER_QUEUE_BACKLOG_BYTES = MetricSpec(
    "rollout_trainer_queue_backlog_bytes",
    MetricType.GAUGE,
    (),
    "Bytes of the records in the reader's queue that are not acked.",
)
TRAINER_QUEUE_OLDEST_AGE = MetricSpec(
    "rollout_trainer_queue_oldest_age_seconds",
    MetricType.GAUGE,
    (),
    "For how long the oldest of these records has waited.",
)
TRAINER_QUEUE_SILENCE = MetricSpec(
    "rollout_trainer_queue_silence_seconds", MetricType.GAUGE, (), "For how long the queue has not answered."
)


def all_metrics() -> Iterator[MetricSpec]:
    """Yield all metrics, in the order of this file."""
    yield from (metric_spec for metric_spec in globals().values() if isinstance(metric_spec, MetricSpec))
