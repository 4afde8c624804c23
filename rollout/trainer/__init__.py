"""Reads whole trajectories exactly once, turns them into batches, and publishes weights, for a trainer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rollout.errors import ConfigurationError
from rollout.trainer.batches.advantages import advantages_of, align_advantages, grpo, rloo, turn_advantages_of
from rollout.trainer.batches.samples import TrainingSample, samples
from rollout.trainer.blocking import BlockingReader
from rollout.trainer.check import Violation, check
from rollout.trainer.errors import (
    EvaluationFailed,
    ImagesUnreadable,
    LeaseLost,
    NoArchive,
    NothingArrived,
    RankError,
    RankFailed,
    ReaderStateError,
    ReadingStalled,
    SampleTooLong,
    SpillError,
)
from rollout.trainer.evaluation import Evaluation, evaluate
from rollout.trainer.reading.archive import open_archive
from rollout.trainer.reading.consumed import merge_states
from rollout.trainer.reading.groups import Group, GroupAssembler, GroupPolicy
from rollout.trainer.reading.ranks import open_reader, partitions_of
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.reading.staleness import staleness
from rollout.trainer.reading.stats import ReaderStats
from rollout.trainer.trajectory import Trajectory, TrajectoryNode
from rollout.trainer.weights.directory import WeightsError, WeightsHeld

if TYPE_CHECKING:
    from rollout.trainer.batches.comparison import (
        ComparisonFinding,
        ComparisonThresholds,
        LogprobComparison,
        compare_logprobs,
    )
    from rollout.trainer.batches.materialize import Materializer
    from rollout.trainer.batches.tensors import Batch, batch_of, collate
    from rollout.trainer.batches.torch_data import Portion, TrajectoryDataset
    from rollout.trainer.ranks.batches import RankBatches, RankStep, open_batches
    from rollout.trainer.weights.publisher import (
        AsyncPolicyPublisher,
        Consumption,
        PolicyPublisher,
        PublisherSettings,
        Pushed,
        PushFailed,
    )

_LAZY_EXPORTS = {
    **dict.fromkeys(
        ("AsyncPolicyPublisher", "Consumption", "PolicyPublisher", "PublisherSettings", "Pushed", "PushFailed"),
        "rollout.trainer.weights.publisher",
    ),
    **dict.fromkeys(
        ("ComparisonFinding", "ComparisonThresholds", "LogprobComparison", "compare_logprobs"),
        "rollout.trainer.batches.comparison",
    ),
    "Batch": "rollout.trainer.batches.tensors",
    "batch_of": "rollout.trainer.batches.tensors",
    "collate": "rollout.trainer.batches.tensors",
    "Materializer": "rollout.trainer.batches.materialize",
    **dict.fromkeys(("RankBatches", "RankStep", "open_batches"), "rollout.trainer.ranks.batches"),
    "Portion": "rollout.trainer.batches.torch_data",
    "TrajectoryDataset": "rollout.trainer.batches.torch_data",
}

__all__ = [
    "AsyncPolicyPublisher",
    "Batch",
    "BlockingReader",
    "ComparisonFinding",
    "ComparisonThresholds",
    "Consumption",
    "Evaluation",
    "EvaluationFailed",
    "Group",
    "GroupAssembler",
    "GroupPolicy",
    "ImagesUnreadable",
    "LeaseLost",
    "LogprobComparison",
    "Materializer",
    "NoArchive",
    "NothingArrived",
    "PolicyPublisher",
    "Portion",
    "PublisherSettings",
    "PushFailed",
    "Pushed",
    "RankBatches",
    "RankError",
    "RankFailed",
    "RankStep",
    "ReaderSettings",
    "ReaderStateError",
    "ReaderStats",
    "ReadingStalled",
    "SampleTooLong",
    "SpillError",
    "TrainingSample",
    "Trajectory",
    "TrajectoryDataset",
    "TrajectoryNode",
    "TrajectoryReader",
    "Violation",
    "WeightsError",
    "WeightsHeld",
    "advantages_of",
    "align_advantages",
    "batch_of",
    "check",
    "collate",
    "compare_logprobs",
    "evaluate",
    "grpo",
    "merge_states",
    "open_archive",
    "open_batches",
    "open_reader",
    "partitions_of",
    "rloo",
    "samples",
    "staleness",
    "turn_advantages_of",
]


def __getattr__(name: str) -> Any:
    # Batches need torch, and publishing needs an HTTP client. A trainer that only reads must load neither.
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'rollout.trainer' has no attribute {name!r}")
    try:
        module = import_module(_LAZY_EXPORTS[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            f"rollout.trainer.{name} needs torch, which is not installed. Install it: "
            "pip install 'rollout-rl[trainer]'."
        ) from error
    return getattr(module, name)
