"""The trainer's end: whole trajectories, exactly once; groups, samples, checks. It imports nothing of the worker's."""

from rollout.trainer.check import Violation, check
from rollout.trainer.groups import Group, GroupAssembler
from rollout.trainer.reader import ReaderStateError, ReaderStats, TrajectoryReader
from rollout.trainer.samples import TrainingSample, samples
from rollout.trainer.trajectory import Trajectory, TrajectoryNode

__all__ = [
    "Group",
    "GroupAssembler",
    "ReaderStateError",
    "ReaderStats",
    "TrainingSample",
    "Trajectory",
    "TrajectoryNode",
    "TrajectoryReader",
    "Violation",
    "check",
    "samples",
]
