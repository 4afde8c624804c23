"""Runs that tests record with given answers, and a YAML that names today's version of the environment."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from rollout.environments.base import Environment, Retry
from rollout.records.task import Task
from rollout.session.policy import PolicyClient
from rollout.tasks.orders import RolloutOrder
from rollout.testing.answers import Answer, AnswerScript
from rollout.testing.played import RecordingSession
from rollout.testing.policies import answering_policy, embedded_policy
from rollout.worker.attempt import Attempt, RunMetadata
from transports import open_queue

ENVIRONMENT = "game"
ROLLOUT = "task.0"
TASK = Task(id="task", index=0, seed=1, data={"question": "Say a word."})


async def record(directory: Path, environment: Environment, answers: Any, *, timeout: float = 60.0) -> None:
    """Record a rollout with these answers, as a worker does in its last attempt."""
    async with answering_policy(directory / "images", AnswerScript(answers)) as policy:
        await record_with(directory, environment, policy, timeout=timeout)


async def record_until_full(directory: Path, environment: Environment, max_model_len: int) -> None:
    """Record a rollout with a context of `max_model_len` tokens."""
    async with embedded_policy(directory / "images", max_model_len=max_model_len) as policy:
        await record_with(directory, environment, policy)


async def record_with(
    directory: Path, environment: Environment, policy: PolicyClient, *, timeout: float = 60.0
) -> None:
    metadata = RunMetadata(directory.name, ENVIRONMENT, policy.engine.model, "0", "0" * 16)
    async with open_queue(f"file://{quote(str(directory))}/trajectories?retain=true") as queue:
        attempt = Attempt(RolloutOrder(TASK, 0, 1), 1, policy, metadata, queue)
        attempt.session = RecordingSession(policy, attempt.stream)
        try:
            await attempt.play(lambda: environment, timeout=timeout)
        except Retry as retry:
            await attempt.finish_without_playing(retry)


def write_config(
    directory: Path,
    today: type[Environment],
    *,
    name: str = "config.yaml",
    settings: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Write the YAML of the run, with the class that plays today."""
    keys = [f"  {key}: {value}\n" for key, value in settings.items()]
    path = directory / name
    path.write_text(
        f"environment:\n  class: {today.__module__}:{today.__qualname__}\n{''.join(keys)}"
        "model:\n  name: tiny\n  path: builtin:tiny\n  renderer: qwen3-vl\n"
        f"run:\n  name: {ENVIRONMENT}\n"
    )
    return path


WORDS = ["moon", Answer("<tool_call>\n{oops\n</tool_call>"), Answer("sea", [("look", {})])]
"""A usual answer, one with a malformed tool call, and one with a valid tool call."""
