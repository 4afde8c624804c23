"""Rollouts for reinforcement learning of (multimodal) language models: environments in, trajectories out."""

# Not imported from typing, because `python -m rollout` must import nothing before it corrects sys.path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rollout.environments.base import (
        ContextExhausted,
        Environment,
        EnvironmentSettings,
        Model,
        Reply,
        Retry,
        Score,
        TaskSettings,
    )
    from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
    from rollout.environments.tool_environment import ToolEnvironment, ToolSettings
    from rollout.environments.tools import Tool, tool
    from rollout.records.endings import RolloutLimit
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
    "Tool",
    "ToolEnvironment",
    "ToolSettings",
    "Turn",
    "tool",
]

_BASE = "rollout.environments.base"
_MODULES = {
    "MultiTurnEnvironment": "rollout.environments.multi_turn",
    "Turn": "rollout.environments.multi_turn",
    "Tool": "rollout.environments.tools",
    "ToolEnvironment": "rollout.environments.tool_environment",
    "ToolSettings": "rollout.environments.tool_environment",
    "tool": "rollout.environments.tools",
}
"""For each public name that is not defined in the module `_BASE`, the module that defines it."""


def __getattr__(name: str) -> "Any":
    """Import a public name when it is first used, so that the command line can start without pydantic."""
    if name not in __all__:
        raise AttributeError(f"module 'rollout' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES.get(name, _BASE)), name)
