"""Environments: the classes that a user derives from, and the ones we ship."""

from rollout.environments.base import (
    Environment,
    EnvironmentSettings,
    Model,
    MultiTurnEnvironment,
    Reply,
    Score,
    Task,
    TaskSettings,
    Turn,
)

__all__ = [
    "Environment",
    "EnvironmentSettings",
    "Model",
    "MultiTurnEnvironment",
    "Reply",
    "Score",
    "Task",
    "TaskSettings",
    "Turn",
]
