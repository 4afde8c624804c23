"""Real vLLM servers on CPU. `.ci/engine` installs vLLM, and sets the variables."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from rollout.serving.vllm import VllmServer, VllmSettings
from tests.needs.services.redis_server import free_port

VENV = os.environ.get("ROLLOUT_VLLM_VENV")
PIDS = os.environ.get("ROLLOUT_VLLM_PIDS")  # a directory for the pids; .ci/engine kills what a killed suite leaves

MODEL = "tiny"
CONTEXT = 32768  # long enough that an answer still runs when a test looks at it, on any machine
FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT), "--disable-uvicorn-access-log")
START_TIMEOUT = 300.0


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

    def wait_until_ready(self) -> None:
        """Wait until the server answers."""
        self.server.wait_until_ready(START_TIMEOUT, lambda *_: None)

    def http(self) -> httpx.Client:
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def metric(self, name: str) -> float:
        """Return the value of one of vLLM's metrics."""
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{"))


class ServerStarter:
    """Starts servers with tiny checkpoints.

    Args:
        checkpoints: makes the checkpoint of a family.
        media: the directory below which the servers read images.
        logs: the directory of their logs.
    """

    def __init__(self, checkpoints: Callable[..., Path], media: Path, logs: Path) -> None:
        self._checkpoints = checkpoints
        self._media = media
        self._logs = logs
        self._started: list[LiveServer] = []

    def start(
        self,
        name: str,
        family: str,
        *flags: str,
        api_key: str | None = None,
        updates: bool = True,
        model: Path | None = None,
        media: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> LiveServer:
        """Start a server, and return it at once; it needs a minute until it answers."""
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "VLLM_NO_USAGE_STATS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode, importing vLLM takes three times as long
        settings = VllmSettings(
            model=str(model or self._checkpoints(family)),
            media_directory=media or self._media,
            name=MODEL,
            port=free_port(),
            executable=Path(f"{VENV}/bin/vllm"),
            api_key_env=None if api_key is None else "ENGINE_KEY",
            updates=updates,
            flags=(*FLAGS, *flags),
        )
        own = {**(variables or {}), **({} if api_key is None else {"ENGINE_KEY": api_key})}
        server = VllmServer(
            settings, self._logs / f"{name}.log", environment={**environment, **own, **(variables or {})}
        )
        live = LiveServer(server, family, api_key)
        self._started.append(live)
        server.start()
        if PIDS:
            (Path(PIDS) / str(server.pid)).write_text(str(server.pid))
        return live

    def stop_all(self) -> None:
        """End all servers."""
        for live in self._started:
            live.server.send_signal(15)
        for live in self._started:
            live.server.stop()
        self._started.clear()
