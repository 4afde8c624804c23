"""Engines are killed during a push, while a launch plays; the sampled tokens show the version of the weights.

The test is the trainer: it has a new publisher in each round, and reads what the workers play. In each round, one of
two engines is killed during a push and started again with its first weights. The test runs with our engine and with
vLLM; only `make verify` plays all rounds with vLLM.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from rollout.engine.weight_updates import EngineState
from rollout.records.versions import OnUpdate
from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.serving.vllm import VllmServer, VllmSettings
from rollout.trainer import BlockingReader, PolicyPublisher, PublisherSettings, Trajectory, check
from tests.marking import make_version_saver, versions_of_tokens

WAIT = 120.0
MODES: tuple[OnUpdate, ...] = ("keep", "wait", "abort")
VLLM = Path(__file__).parents[4] / ".venv-vllm" / "bin" / "vllm"
VLLM_FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512")
ROUNDS = {"transformers": MODES, "vllm": MODES if os.environ.get("ROLLOUT_TESTS") == "full" else ("wait",)}


class EngineProcess(Protocol):
    """An engine in a separate process."""

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Transformers:
    """`rollout serve transformers`."""

    model: Path
    port: int
    process: "subprocess.Popen[str] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "rollout", "serve", "transformers", str(self.model), "--name", "tiny"]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.url in self.process.stdout.readline()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


class Vllm:
    """`rollout serve vllm`."""

    def __init__(self, model: Path, port: int) -> None:
        settings = VllmSettings(str(model), model.parent, "tiny", port=port, executable=VLLM, flags=VLLM_FLAGS)
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        self.server = VllmServer(settings, model.parent / f"{port}.log", environment=environment)

    @property
    def url(self) -> str:
        return self.server.settings.url

    def start(self) -> None:
        self.server.start()
        self.server.wait_until_ready(5 * WAIT, lambda seconds, line: None)

    def kill(self) -> None:
        self.server.kill()


KINDS: dict[str, Callable[[Path, int], EngineProcess]] = {"transformers": Transformers, "vllm": Vllm}


@dataclass
class TrajectoryCollector:
    """Reads all trajectories in a thread, so that workers never wait for it."""

    url: str
    found: list[Trajectory] = field(default_factory=list)

    def start(self) -> None:
        self._stopping = False
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def stop(self) -> None:
        """Read what is left, and stop."""
        self._stopping = True
        self._reading.join()

    def _read(self) -> None:
        with BlockingReader(self.url) as reader:
            empty_polls = 0
            while not (self._stopping and empty_polls >= 3):
                if (trajectory := reader.receive(timeout=0.2)) is None:
                    empty_polls += 1
                    continue
                empty_polls = 0
                self.found.append(trajectory)

    def has(self, version: int) -> bool:
        """Whether a recent rollout was played by this version only."""
        return any(versions(trajectory) == {version} for trajectory in self.found[-50:])


def versions(trajectory: Trajectory) -> set[int]:
    return {int(span.version) for step in trajectory.steps for span in step.versions}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that samples only the tokens of version 0."""
    directory = tmp_path_factory.mktemp("model")
    plain, marked = directory / "plain", directory / "marked"
    make_checkpoint(plain, "qwen3-vl", seed=0)
    shutil.copytree(plain, marked)
    make_version_saver(plain, load_tokenizer(plain), 0)(marked)
    return marked


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the engines."""
    named: str = request.param
    return named


@pytest.fixture
def engines(kind: str, model: Path) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    first, second = (KINDS[kind](model, port) for port in ports)
    try:
        with ThreadPoolExecutor() as together:
            list(together.map(lambda engine: engine.start(), (first, second)))
        yield first, second
    finally:
        first.kill()
        second.kill()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[TrajectoryCollector]:
    trainer = TrajectoryCollector(f"file://{tmp_path}/trajectories")
    trainer.start()
    yield trainer
    trainer.stop()


@pytest.fixture
def launch(
    tmp_path: Path, model: Path, engines: tuple[EngineProcess, EngineProcess], trainer: TrajectoryCollector
) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts a launch of two workers, which play until SIGTERM."""
    config = Path(__file__).parent / "world" / "babble.yaml"
    settings = {
        "engine.urls": "[" + ",".join(f'"{engine.url}"' for engine in engines) + "]",
        "queue.url": trainer.url,
        "queue.control": f"file://{tmp_path}/control",
        "run.directory": str(tmp_path / "runs"),
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "rollout", "launch", str(config), "--workers", "2", "--json", *options]
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        env = {**os.environ, "MODEL": str(model)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
        return started[0]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


class Publishing:
    """Publishes one version after the other; the tokens of each show its number."""

    def __init__(self, model: Path) -> None:
        self.published: list[int] = []
        self.behind_reasons: list[str] = []
        self._model = model
        self._tokenizer = load_tokenizer(model)
        self._saved = threading.Event()

    def publish(self, publisher: PolicyPublisher) -> None:
        version = len(self.published)
        self.published.append(version)
        self.behind_reasons += publisher.publish(version, self._save(version)).behind.values()

    def publish_and_kill(self, publisher: PolicyPublisher, victim: EngineProcess, delay: float) -> None:
        """Publish, and kill an engine `delay` seconds after the weights were saved."""
        self._saved.clear()
        publishing = threading.Thread(target=self.publish, args=(publisher,))
        publishing.start()
        self._saved.wait()
        time.sleep(delay)
        victim.kill()
        publishing.join()

    def _save(self, version: int) -> Callable[[Path], None]:
        save = make_version_saver(self._model, self._tokenizer, version)

        def save_and_signal(directory: Path) -> None:
            save(directory)
            self._saved.set()

        return save_and_signal


def test_the_run_continues_with_the_other_engine_and_every_token_has_the_right_version(
    tmp_path: Path,
    kind: str,
    model: Path,
    engines: tuple[EngineProcess, EngineProcess],
    trainer: TrajectoryCollector,
    launch: Callable[[], "subprocess.Popen[str]"],
) -> None:
    dice = random.Random(7)
    publishing = Publishing(model)
    published = publishing.published
    running = None
    for number, mode in enumerate(ROUNDS[kind]):
        controls = {"babble": f"file://{tmp_path}/control"}
        settings = PublisherSettings(
            tuple(engine.url for engine in engines), tmp_path / "policy", controls, mode, WAIT, reference=model
        )
        victim, other = engines[number % 2], engines[1 - number % 2]
        with PolicyPublisher(settings) as publisher:
            publishing.publish(publisher)
            running = running or launch()
            wait_until(lambda: trainer.has(published[-1]))
            publishing.publish(publisher)
            wait_until(lambda: trainer.has(published[-1]))
            publishing.publish_and_kill(publisher, victim, dice.uniform(0.01, 0.1))
            assert publisher.states()[other.url] == EngineState(str(published[-1]), paused=False)
            wait_until(lambda: trainer.has(published[-1]))
            victim.start()
            wait_until(lambda: set(publisher.states().values()) == {EngineState(str(published[-1]), paused=False)})
            publishing.publish(publisher)
            wait_until(lambda: trainer.has(published[-1]))
    assert running is not None
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=WAIT)
    assert running.returncode == 0
    trainer.stop()
    print("killed at:", *(reason.partition(". Is it")[0] for reason in publishing.behind_reasons), sep="\n  ")
    check_version_labels(trainer.found, published, load_tokenizer(model))


def check_version_labels(found: list[Trajectory], published: list[int], tokenizer: FastTokenizer) -> None:
    sampled: Counter[int] = Counter()
    for trajectory in found:
        assert trajectory.error is None
        assert check(trajectory) == []
        for step in trajectory.steps:
            run = trajectory.nodes[step.leaf].run
            sampling_versions = versions_of_tokens(run.ids[run.sampled_from :].tolist(), tokenizer)
            labels = [int(span.version) for span in step.versions for _ in range(span.start, span.end)]
            assert sampling_versions == labels
            assert step.policy is not None
            assert min(labels) >= int(step.policy[0])  # not older than the version that the turn required
            sampled.update(labels)
    assert set(sampled) == set(published)
    print(f"{len(found)} rollouts, tokens by version: {dict(sorted(sampled.items()))}")
