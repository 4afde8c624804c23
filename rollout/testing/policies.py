"""Policies for tests: the small model that we ship, served by an embedded engine."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread

from renderers_adapter.pool import RendererPool, shared_pool
from rollout.config.gateway import GatewayConfig
from rollout.engine.client import EngineClient
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.serving.embedded import TINY_MODEL, EmbeddedServer, EmbeddedSettings
from rollout.serving.server import EngineServer
from rollout.session.policy import PolicyClient
from rollout.testing.answers import AnswerScript
from rollout.testing.scripted_engine import ScriptedAnswersEngine, ScriptedClient

_RENDERER = "qwen3-vl"
_TIMEOUT = 300.0
"""The time limit for a request, in seconds. On a busy machine, the first images may take a minute."""


@asynccontextmanager
async def embedded_policy(
    directory: Path,
    *,
    mode: Literal["offload", "inline"] = "offload",
    script: str = "rollout.serving.policies:ColorPolicy",
    sampling: Mapping[str, Any] | None = None,
    max_model_len: int = 32768,
    gateway: GatewayConfig | None = None,
) -> AsyncIterator[PolicyClient]:
    """Start an embedded engine with the small model that we ship, and yield a policy that uses it.

    Args:
        directory: the directory for images, and for `model.artifacts_directory()`.
        mode: how images are stored, as `images.mode` in a configuration.
        script: the scripted policy that answers, as `package.module:Class`.
        sampling: sampling parameters; the default temperature is 0.
        max_model_len: the limit for a prompt and its completion together, in tokens.
        gateway: the section `gateway` of a configuration; None: its defaults.
    """
    renderers = await _open_renderers()
    settings = EmbeddedSettings(policy=script, allowed_directories=(directory,), max_model_len=max_model_len)
    with EmbeddedServer(settings) as url:
        async with EngineClient([url], settings.model_name, timeout=_TIMEOUT) as engine:
            await engine.check()
            async with _open_gateway(gateway, settings.model_name) as opened_gateway:
                yield PolicyClient(
                    renderers,
                    engine,
                    ImagePolicy(mode, directory),
                    {"temperature": 0.0, **(sampling or {})},
                    open_endpoint=opened_gateway.open_endpoint,
                    artifacts=directory / "artifacts",
                )


@asynccontextmanager
async def answering_policy(
    directory: Path, script: AnswerScript, *, allow: Sequence[Path] = ()
) -> AsyncIterator[PolicyClient]:
    """Start an engine that gives a test's answers, and yield a policy that uses it. Images stay in the messages.

    Args:
        directory: the directory for copies of the image files that messages name, and for
            `model.artifacts_directory()`.
        script: the answers.
        allow: the directories from which such image files may come.
    """
    renderers = await _open_renderers()
    settings = EmbeddedSettings(allowed_directories=(directory,))
    engine = ScriptedAnswersEngine(settings)
    with EngineServer(engine, weight_version=settings.weight_version) as url:
        async with ScriptedClient(url, engine, script, renderers, timeout=_TIMEOUT) as client:
            await client.check()
            images = ImagePolicy("inline", directory, allow=tuple(allow))
            async with _open_gateway(None, settings.model_name) as gateway:
                yield PolicyClient(
                    renderers,
                    client,
                    images,
                    {"temperature": 0.0},
                    open_endpoint=gateway.open_endpoint,
                    artifacts=directory / "artifacts",
                )


def _open_gateway(config: GatewayConfig | None, model: str) -> Gateway:
    return Gateway(config or GatewayConfig(), model=model, metrics=WorkerMetrics(""))


async def _open_renderers() -> RendererPool:
    return await anyio.to_thread.run_sync(shared_pool, TINY_MODEL, _RENDERER)
