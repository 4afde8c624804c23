"""Defines what all sessions of a worker share: the client of the policy, and the trainer's policy version."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from renderers_adapter.pool import RendererPool
from rollout.engine.client import EngineClient
from rollout.environments.endpoint import Endpoint, EndpointOptions
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.session.turns import EndpointSession


@dataclass(slots=True)
class PolicyVersionState:
    """The trainer's policy version, as this process knows it; it changes while rollouts run.

    Attributes:
        current: the name of the trainer's version.
        required: the version that the trainer pushed to the engines. Engines with older weights are not used. None: all
            engines are used.
    """

    current: str = "0"
    required: str | None = None


EndpointOpener = Callable[[EndpointSession, EndpointOptions], AbstractAsyncContextManager[Endpoint]]
"""Opens an endpoint for a session, as its environment wants it."""


@dataclass(frozen=True, slots=True)
class PolicyClient:
    """The objects that a session needs to talk to the policy; all sessions of a worker share them.

    Attributes:
        renderers: the renderers, which turn messages into tokens, and tokens into messages.
        engine: the client that sends requests to the engines.
        image_policy: which images are accepted, and where they are stored.
        sampling: the sampling parameters of the YAML, which a turn may override.
        version: the trainer's policy version.
        metrics: the metrics of the worker.
        ban_placeholders: whether requests forbid the engines to sample the pad tokens of images and videos.
        open_endpoint: opens an address for an agent program; None: there is no gateway.
        artifacts: the directory with a directory for the files of each attempt; None: attempts cannot have files.
    """

    renderers: RendererPool
    engine: EngineClient
    image_policy: ImagePolicy
    sampling: Mapping[str, Any]
    version: PolicyVersionState = field(default_factory=PolicyVersionState)
    metrics: WorkerMetrics = field(default_factory=lambda: WorkerMetrics(""))
    ban_placeholders: bool = True
    open_endpoint: EndpointOpener | None = None
    artifacts: Path | None = None

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that the requests forbid the engines to sample."""
        return self.renderers.media_ids if self.ban_placeholders else ()
