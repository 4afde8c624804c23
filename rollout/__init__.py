"""Rollouts for reinforcement learning of (multimodal) language models: environments in, trajectories out."""

TYPE_CHECKING = False  # not that of typing: `python -m rollout` must import nothing before its path is in order
if TYPE_CHECKING:
    from typing import Any

    from rollout.environments.base import (
        ContextExhausted,
        Environment,
        EnvironmentSettings,
        Model,
        MultiTurnEnvironment,
        Reply,
        Retry,
        Score,
        TaskSettings,
        Turn,
    )
    from rollout.records.kinds import RolloutLimit
    from rollout.records.messages import FinishReason
    from rollout.records.task import Task

__all__ = [
    "ContextExhausted",
    "Environment",
    "EnvironmentSettings",
    "FinishReason",
    "Model",
    "MultiTurnEnvironment",
    "Reply",
    "Retry",
    "RolloutLimit",
    "Score",
    "Task",
    "TaskSettings",
    "Turn",
]


def __getattr__(name: str) -> "Any":
    # Imported on first use, so that the command line starts without pydantic.
    if name not in __all__:
        raise AttributeError(f"module 'rollout' has no attribute {name!r}")
    from rollout.environments import base

    return getattr(base, name)
