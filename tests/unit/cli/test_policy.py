"""`rollout policy` with embedded engines."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.trainer import PolicyPublisher, PublisherSettings
from tests.unit.cli import in_process


@pytest.fixture
def engine() -> Iterator[str]:
    with EmbeddedServer(EmbeddedSettings(weight_version="default")) as url:
        yield url


@pytest.fixture
def rollout(repository: Path, engine: str, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def call(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        config = str(repository / "configs" / "calculator.yaml")
        urls = ("--set", f'engine.urls=["{engine}"]')
        return in_process.run_cli("policy", command, config, "--run", str(tmp_path / "run"), *urls, *arguments)

    return call


@pytest.fixture
def published(engine: str, tmp_path: Path, write_weights: Callable[..., None]) -> None:
    """Publish version 3 of the weights."""
    with PolicyPublisher(PublisherSettings((engine,), tmp_path / "run" / "policy")) as publisher:
        publisher.publish(3, lambda directory: write_weights(directory, {"embed.weight": (4, 2)}))


@pytest.mark.usefixtures("published")
def test_push_repairs_an_engine_that_stopped_during_an_update(
    rollout: Callable[..., "subprocess.CompletedProcess[str]"], engine: str
) -> None:
    assert rollout("status").returncode == 0
    httpx.post(f"{engine}/pause?mode=abort")
    httpx.post(f"{engine}/update_weight_version", json={"new_version": "4-loading"})
    shown = rollout("status")
    assert shown.returncode == 1
    assert "published: version 3" in shown.stdout
    assert "version 4-loading, paused" in shown.stdout

    repaired = rollout("push")
    assert (repaired.returncode, repaired.stdout) == (0, f"ok  {engine}  version 3\n")
    status = json.loads(rollout("status", "--json").stdout)
    assert status == {"published": 3, "engines": {engine: {"version": "3", "paused": False, "sound": True}}}


def test_push_and_status_need_a_published_version(
    rollout: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert "give the directory of a run" in rollout("push").stderr
    (tmp_path / "run").mkdir()
    shown = rollout("status")
    assert shown.returncode == 1
    assert "published: none" in shown.stdout
    pushed = rollout("push")
    assert pushed.returncode == 1
    assert "Publish a version first" in pushed.stderr


@pytest.mark.usefixtures("published")
def test_engines_that_cannot_be_reached_are_named(
    rollout: Callable[..., "subprocess.CompletedProcess[str]"], engine: str
) -> None:
    both = ("--set", f'engine.urls=["{engine}","http://127.0.0.1:1"]')
    push_report = json.loads(rollout("push", *both, "--json").stdout)
    assert push_report["engines"] == [engine]
    assert "no answer from the engine at http://127.0.0.1:1" in push_report["behind"]["http://127.0.0.1:1"]
