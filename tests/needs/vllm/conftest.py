"""Real vLLM servers on CPU, for all tests here. `.ci/engine` installs vLLM, and sets the variables.

Three servers start together: a Qwen3-VL, the same without a multimodal cache, and a Qwen2.5-VL that needs an API key.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from renderers_adapter.pool import shared_pool
from rollout.config.gateway import GatewayConfig
from rollout.engine.client import EngineClient
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.serving.vllm import SHIM_DIRECTORY, VllmServer, VllmSettings
from rollout.session.policy import PolicyClient
from tests.needs.services.redis_server import free_port

VENV = os.environ.get("ROLLOUT_VLLM_VENV")
PIDS = os.environ.get("ROLLOUT_VLLM_PIDS")  # a directory for the pids; .ci/engine kills what a killed suite leaves
collect_ignore_glob = [] if VENV else ["test_*.py"]

API_KEY = "a key that nobody may see"
MODEL = "tiny"
CONTEXT = 32768  # long enough that an answer still runs when a test looks at it, on any machine
FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT), "--disable-uvicorn-access-log")
START_TIMEOUT = 300.0
OTHER_SIZES = ("--merge-size", "3", "--merges", "600")

Mode = Literal["offload", "inline"]
PolicyFor = Callable[..., AbstractAsyncContextManager[PolicyClient]]


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running server, and what it serves."""

    server: VllmServer
    renderer: str
    api_key: str | None

    @property
    def url(self) -> str:
        return self.server.settings.url

    @property
    def model_dir(self) -> Path:
        return Path(self.server.settings.model)

    def http(self) -> httpx.Client:
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def metric(self, name: str) -> float:
        """Return the value of one of vLLM's metrics."""
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{"))


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
def fleet(
    checkpoints: Callable[..., Path], media: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, LiveServer]]:
    logs = tmp_path_factory.mktemp("logs")
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode, importing vLLM takes three times as long

    def launch(name: str, family: str, *flags: str, api_key: str | None = None) -> LiveServer:
        settings = VllmSettings(
            model=str(checkpoints(family)),
            media_directory=media,
            name=MODEL,
            port=free_port(),
            executable=Path(f"{VENV}/bin/vllm"),
            api_key_env=None if api_key is None else "ENGINE_KEY",
            flags=(*FLAGS, *flags),
        )
        own = {} if api_key is None else {"ENGINE_KEY": api_key}
        server = VllmServer(settings, logs / f"{name}.log", environment={**environment, **own})
        server.start()
        if PIDS:
            (Path(PIDS) / name).write_text(str(server.pid))
        return LiveServer(server, family, api_key)

    servers: dict[str, LiveServer] = {}
    try:
        servers["qwen3-vl"] = launch("qwen3-vl", "qwen3-vl")
        servers["no-cache"] = launch("no-cache", "qwen3-vl", "--mm-processor-cache-gb", "0")
        servers["qwen2.5-vl"] = launch("qwen2.5-vl", "qwen2.5-vl", api_key=API_KEY)
        for live in servers.values():
            live.server.wait_until_ready(START_TIMEOUT, lambda *_: None)
        yield servers
    finally:
        for live in servers.values():
            live.server.send_signal(15)
        for live in servers.values():
            live.server.stop()


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
        **sampling: Any,
    ) -> AsyncIterator[PolicyClient]:
        renderers = shared_pool(live.model_dir, live.renderer)
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
