"""Play a rollout in a test with all parts that a real one uses, and look at its trajectory.

    async with embedded_policy(tmp_path) as policy:
        trajectory = await play(MyEnvironment(MySettings()), Task(id="0", index=0, seed=1), policy)
        assert check(trajectory) == []

The engine is the embedded one, over HTTP; the records cross a memory queue and are read by the trainer's reader.
"""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread

from renderers_adapter.pool import shared_pool
from rollout.engine.client import EngineClient
from rollout.environments.base import Environment
from rollout.images import ImagePolicy
from rollout.records.task import Task
from rollout.serving.embedded import TINY_MODEL, EmbeddedServer, EmbeddedSettings
from rollout.session.session import PolicyClient
from rollout.tasks.orders import RolloutOrder
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.trajectory import Trajectory
from rollout.worker.attempt import Attempt, RunMetadata
from rollout.worker.resources import open_shared_resources
from transports import open_queue

_TIMEOUT = 300.0
"""Only a broken part needs so long; a real engine on a busy machine may need a minute for its first images."""


@asynccontextmanager
async def embedded_policy(
    directory: Path,
    *,
    mode: Literal["offload", "inline"] = "offload",
    script: str = "rollout.serving.policies:ColorPolicy",
    sampling: Mapping[str, Any] | None = None,
    max_model_len: int = 32768,
) -> AsyncIterator[PolicyClient]:
    """Serve the small model that we ship with an embedded engine of its own.

    Args:
        directory: where the images are kept.
        mode: how images are stored, as `images.mode` in a configuration.
        script: the scripted policy that answers, as `package.module:Class`.
        sampling: sampling parameters; the temperature is 0 if none is given.
        max_model_len: the longest prompt and completion together, in tokens.
    """
    renderers = await anyio.to_thread.run_sync(shared_pool, TINY_MODEL, "qwen3-vl")
    settings = EmbeddedSettings(policy=script, allowed_directories=(directory,), max_model_len=max_model_len)
    with EmbeddedServer(settings) as url:
        async with EngineClient([url], settings.model_name, timeout=_TIMEOUT) as engine:
            await engine.check()
            yield PolicyClient(
                renderers, engine, ImagePolicy(mode, directory), {"temperature": 0.0, **(sampling or {})}
            )


async def play(environment: Environment, task: Task, policy: PolicyClient) -> Trajectory:
    """Play one rollout and return it as the trainer would read it."""
    metadata = RunMetadata("test", type(environment).__name__, policy.engine.model, "0", "0" * 16)
    url = f"memory://{uuid.uuid4().hex}"
    async with (
        open_queue(url) as queue,
        TrajectoryReader(open_queue(url)) as reader,
        open_shared_resources(type(environment), environment.settings) as environment.shared_resources,
    ):
        attempt = Attempt(RolloutOrder(task, 0, 1), 1, policy, metadata, queue)
        await attempt.play(lambda: environment, timeout=_TIMEOUT)
        trajectory = await reader.receive(timeout=_TIMEOUT)
    assert trajectory is not None
    return trajectory
