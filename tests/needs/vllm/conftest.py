"""Real vLLM servers on CPU, for all tests here. `.ci/engine` installs vLLM, and sets the variables.

Three servers start together: a Qwen3-VL, the same without a multimodal cache, and a Qwen2.5-VL that needs an API key.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from renderers_adapter.options import RendererOptions
from renderers_adapter.pool import shared_pool
from rollout.config.gateway import GatewayConfig
from rollout.engine.client import EngineClient
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.serving.vllm import SHIM_DIRECTORY
from rollout.session.policy import PolicyClient
from tests.needs.vllm.servers import MODEL, VENV, LiveServer, ServerStarter

collect_ignore_glob = [] if VENV else ["test_*.py"]

_HALF_OF_THE_SUITE = ("doctor", "chat_templates")
"""The directories whose tests take about half of the time. Each process starts the servers that its tests need."""

API_KEY = "a key that nobody may see"
OTHER_SIZES = ("--merge-size", "3", "--merges", "600")

Mode = Literal["offload", "inline"]
PolicyFor = Callable[..., AbstractAsyncContextManager[PolicyClient]]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Divide the tests between two processes (`--dist loadgroup`)."""
    for item in items:
        is_first_half = any(name in item.path.parts for name in _HALF_OF_THE_SUITE)
        item.add_marker(pytest.mark.xdist_group("first half" if is_first_half else "second half"))


class RecordingClient(EngineClient):
    """A client that keeps every request and its answer."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.turns: list[tuple[GenerateRequest, Generation]] = []

    async def generate(self, request: GenerateRequest) -> Generation:
        generation = await super().generate(request)
        self.turns.append((request, generation))
        return generation


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory below which the servers read images."""
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Callable[..., Path]:
    """Makes the tiny checkpoint of a family. The Qwen2.5-VL has other sizes and a smaller vocabulary."""
    directory = tmp_path_factory.mktemp("models")
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{SHIM_DIRECTORY}"}

    def make(family: str, *, seed: int = 0) -> Path:
        made = directory / f"{family}-{seed}"
        if not made.exists():
            command = [f"{VENV}/bin/python", "-m", "rollout.serving.tiny_model", str(made), "--family", family]
            sizes = OTHER_SIZES if family == "qwen2.5-vl" else ()
            subprocess.run([*command, "--seed", str(seed), *sizes], check=True, env=environment)
        return made

    return make


@pytest.fixture(scope="session")
def starter(
    checkpoints: Callable[..., Path], media: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerStarter]:
    """Starts servers, and ends those that are left at the end of the tests."""
    started = ServerStarter(checkpoints, media, tmp_path_factory.mktemp("logs"))
    try:
        yield started
    finally:
        started.stop_all()


@pytest.fixture(scope="session")
def fleet(starter: ServerStarter) -> Mapping[str, LiveServer]:
    servers = {
        "qwen3-vl": starter.start("qwen3-vl", "qwen3-vl"),
        "no-cache": starter.start("no-cache", "qwen3-vl", "--mm-processor-cache-gb", "0"),
        "qwen2.5-vl": starter.start("qwen2.5-vl", "qwen2.5-vl", api_key=API_KEY),
    }
    for live in servers.values():
        live.wait_until_ready()
    return servers


@pytest.fixture
def policy_for(media: Path, tmp_path: Path) -> PolicyFor:
    """A policy with one server, whose client keeps every turn. Each test has its own directory of images."""

    @asynccontextmanager
    async def make(
        live: LiveServer,
        mode: Mode = "offload",
        *,
        client: type[RecordingClient] = RecordingClient,
        gateway: GatewayConfig | None = None,
        options: RendererOptions | None = None,
        **sampling: Any,
    ) -> AsyncIterator[PolicyClient]:
        renderers = shared_pool(live.model_dir, live.renderer, options)
        images = ImagePolicy(mode, media / tmp_path.name)
        async with (
            client([live.url], MODEL, timeout=120, api_key=live.api_key) as engine,
            Gateway(gateway or GatewayConfig(), model=MODEL, metrics=WorkerMetrics("")) as opened,
        ):
            await engine.check()
            yield PolicyClient(
                renderers,
                engine,
                images,
                {"temperature": 0.0, "max_tokens": 8, **sampling},
                open_endpoint=opened.open_endpoint,
            )

    return make
