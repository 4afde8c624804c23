"""Defines every metric that our processes export: its name, type, labels and meaning.

The names follow the conventions of Prometheus: values have base units, and the name of a counter ends with `_total`. A
worker's metrics have the name of its environment as a label.
"""

from collections.abc import Iterator

from rollout.metrics.specs import MetricSpec, MetricType

_ENVIRONMENT_LABELS = ("environment",)
_ENGINE_LABELS = ("environment", "engine")
_DIALECT_LABELS = ("environment", "dialect")
_QUEUE_LABELS = ("environment", "queue")
_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LOOP_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_VERSION_LAG_BUCKETS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)

ROLLOUTS = MetricSpec(
    "rollout_rollouts_total", MetricType.COUNTER, ("environment", "status"), "Rollouts that ended, by status."
)
FINISHED_TURNS = MetricSpec(
    "rollout_finished_turns_total", MetricType.COUNTER, _ENVIRONMENT_LABELS, "Turns in the rollouts that ended."
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
    "Repeated attempts: the infrastructure failed, a worker died, or the environment raised Retry.",
)
TURNS = MetricSpec(
    "rollout_turns_total",
    MetricType.COUNTER,
    ("environment", "prompt"),
    "Sampled turns, also of lost attempts, by the source of the prompt: bridge, or the reason for a render.",
)
PROMPT_TOKENS = MetricSpec(
    "rollout_prompt_tokens_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Tokens in the prompts of the sampled turns.",
)
CACHED_TOKENS = MetricSpec(
    "rollout_cached_tokens_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Prompt tokens that the engine found in its prefix cache.",
)
SAMPLED_TOKENS = MetricSpec(
    "rollout_sampled_tokens_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Tokens that the policy sampled, also in lost attempts.",
)
TURN_SECONDS = MetricSpec(
    "rollout_turn_seconds",
    MetricType.HISTOGRAM,
    ("environment", "stage"),
    "Seconds that a turn spent in each stage: prepare, render, wait (of programs), engine, parse.",
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
    "Encoded bytes of images that were already stored, so they were not stored again (images.mode: offload).",
)
ENGINE_REQUEST_SECONDS = MetricSpec(
    "rollout_engine_request_seconds",
    MetricType.HISTOGRAM,
    ("environment", "engine", "outcome"),
    "Seconds of each try of a request; the outcome is ok, cancelled, or the name of the error.",
    _DURATION_BUCKETS,
)
ENGINE_RETRIES = MetricSpec(
    "rollout_engine_retries_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Requests that were sent to an engine again.",
)
ENGINE_EJECTIONS = MetricSpec(
    "rollout_engine_ejections_total",
    MetricType.COUNTER,
    _ENGINE_LABELS,
    "How many times the worker stopped using an engine because the engine failed.",
)
ENGINE_EJECTED = MetricSpec(
    "rollout_engine_ejected",
    MetricType.GAUGE,
    _ENGINE_LABELS,
    "1 while the worker does not use this engine because it failed; otherwise 0.",
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
    "The number of the trainer's policy version, as the worker knows it.",
)
POLICY_LAG = MetricSpec(
    "rollout_policy_lag_versions",
    MetricType.HISTOGRAM,
    _ENVIRONMENT_LABELS,
    "How many versions the weights of a turn are behind the trainer's weights.",
    _VERSION_LAG_BUCKETS,
)
LOOP_LAG = MetricSpec(
    "rollout_event_loop_lag_seconds",
    MetricType.HISTOGRAM,
    _ENVIRONMENT_LABELS,
    "Seconds between the time at which a timer was due and the time at which the event loop ran it.",
    _LOOP_LAG_BUCKETS,
)
LOOP_STALLED = MetricSpec(
    "rollout_event_loop_stalled_seconds",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "Seconds for which the event loop has not run.",
)
ADMISSION_WAIT = MetricSpec(
    "rollout_admission_wait_seconds",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "Seconds for which the worker has waited for room in the trajectories queue.",
)
GATEWAY_REQUESTS = MetricSpec(
    "rollout_gateway_requests_total",
    MetricType.COUNTER,
    ("environment", "dialect", "outcome"),
    "Requests of programs to the gateway; the outcome is ok, limit, refused, failed or cancelled.",
)
GATEWAY_REQUEST_SECONDS = MetricSpec(
    "rollout_gateway_request_seconds",
    MetricType.HISTOGRAM,
    _DIALECT_LABELS,
    "Seconds of each request to the gateway that the policy answered.",
    _DURATION_BUCKETS,
)
GATEWAY_ECHOES = MetricSpec(
    "rollout_gateway_echoes_total",
    MetricType.COUNTER,
    ("environment", "dialect", "echo"),
    "Requests to the gateway with earlier answers, by how these came back: exact, normalised or foreign.",
)
GATEWAY_RETRIES = MetricSpec(
    "rollout_gateway_retries_total",
    MetricType.COUNTER,
    _DIALECT_LABELS,
    "Requests to the gateway that a program sent again and that got the same turn.",
)
GATEWAY_CONNECTIONS = MetricSpec(
    "rollout_gateway_connections", MetricType.GAUGE, _ENVIRONMENT_LABELS, "Open connections of programs to the gateway."
)

WORKERS = MetricSpec(
    "rollout_workers", MetricType.GAUGE, ("environment", "state"), "Workers of the launch, by state: starting or ready."
)
WORKER_DEATHS = MetricSpec(
    "rollout_worker_deaths_total",
    MetricType.COUNTER,
    _ENVIRONMENT_LABELS,
    "Workers that ended although the launch did not stop them.",
)
ROLLOUTS_EXPECTED = MetricSpec(
    "rollout_rollouts_expected",
    MetricType.GAUGE,
    _ENVIRONMENT_LABELS,
    "The total number of rollouts that the run plays.",
)
QUEUE_BACKLOG_RECORDS = MetricSpec(
    "rollout_queue_backlog_records", MetricType.GAUGE, _QUEUE_LABELS, "Records in the queue that are not acked."
)
QUEUE_BACKLOG_BYTES = MetricSpec(
    "rollout_queue_backlog_bytes",
    MetricType.GAUGE,
    _QUEUE_LABELS,
    "Bytes of the records in the queue that are not acked.",
)
QUEUE_OLDEST_AGE = MetricSpec(
    "rollout_queue_oldest_age_seconds",
    MetricType.GAUGE,
    _QUEUE_LABELS,
    "The age in seconds of the oldest record that is not acked.",
)
QUEUE_REDELIVERIES = MetricSpec(
    "rollout_queue_redeliveries_total", MetricType.COUNTER, _QUEUE_LABELS, "Records that the queue delivered again."
)
QUEUE_DEAD_LETTERS = MetricSpec(
    "rollout_queue_dead_letters", MetricType.GAUGE, _QUEUE_LABELS, "Dead letters: records that a consumer rejected."
)
QUEUE_REFUSED_MESSAGES = MetricSpec(
    "rollout_queue_refused_messages_total",
    MetricType.COUNTER,
    _QUEUE_LABELS,
    "Messages that the hub of a zmq:// queue refused.",
)
QUEUE_SILENCE = MetricSpec(
    "rollout_queue_silence_seconds", MetricType.GAUGE, _QUEUE_LABELS, "Seconds for which the queue has not answered."
)

TRAINER_TRAJECTORIES = MetricSpec(
    "rollout_trainer_trajectories_total",
    MetricType.COUNTER,
    (),
    "Trajectories that the reader returned, alone or in groups.",
)
TRAINER_GROUPS = MetricSpec("rollout_trainer_groups_total", MetricType.COUNTER, (), "Groups that the reader returned.")
TRAINER_PARTIAL_GROUPS = MetricSpec(
    "rollout_trainer_partial_groups_total",
    MetricType.COUNTER,
    (),
    "Groups that timed out before they were whole.",
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
    "Received records that the queue had already delivered before.",
)
TRAINER_DROPPED_RECORDS = MetricSpec(
    "rollout_trainer_dropped_records_total",
    MetricType.COUNTER,
    (),
    "Records that were dropped because their rollout was already consumed, or their group timed out.",
)
TRAINER_REJECTED_RECORDS = MetricSpec(
    "rollout_trainer_rejected_records_total",
    MetricType.COUNTER,
    (),
    "Records that the reader rejected because they cannot be decoded.",
)
TRAINER_STALE_TRAJECTORIES = MetricSpec(
    "rollout_trainer_stale_trajectories_total",
    MetricType.COUNTER,
    (),
    "Trajectories that were dropped because of max_staleness.",
)
TRAINER_HELD_BACK_TRAJECTORIES = MetricSpec(
    "rollout_trainer_held_back_trajectories_total",
    MetricType.COUNTER,
    (),
    "Trajectories that have a score but do not train because of untrained_limits.",
)
TRAINER_UNFINISHED_ROLLOUTS = MetricSpec(
    "rollout_trainer_unfinished_rollouts",
    MetricType.GAUGE,
    (),
    "Rollouts of which some records have arrived and others are still missing.",
)
TRAINER_WAITING_TRAJECTORIES = MetricSpec(
    "rollout_trainer_waiting_trajectories",
    MetricType.GAUGE,
    (),
    "Finished trajectories that the reader has not returned yet.",
)
TRAINER_UNACKED_RECORDS = MetricSpec(
    "rollout_trainer_unacked_records", MetricType.GAUGE, (), "Records that the reader received and has not acked yet."
)
TRAINER_HELD_BYTES = MetricSpec(
    "rollout_trainer_held_bytes",
    MetricType.GAUGE,
    ("where",),
    "Bytes of steps that the reader holds for trajectories that it has not returned, in memory or on disk.",
)
TRAINER_POLICY_VERSION = MetricSpec(
    "rollout_trainer_policy_version", MetricType.GAUGE, (), "The number of the trainer's policy version."
)
TRAINER_STALENESS = MetricSpec(
    "rollout_trainer_staleness_versions",
    MetricType.HISTOGRAM,
    (),
    "How many versions a returned trajectory's oldest weights were behind the trainer's weights.",
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
    "The age in seconds of the oldest record that is not acked.",
)
TRAINER_QUEUE_SILENCE = MetricSpec(
    "rollout_trainer_queue_silence_seconds", MetricType.GAUGE, (), "Seconds for which the queue has not answered."
)


def all_metrics() -> Iterator[MetricSpec]:
    """Yield all metrics, in the order of this file."""
    yield from (metric_spec for metric_spec in globals().values() if isinstance(metric_spec, MetricSpec))
