"""One server after the other, each with the tiny checkpoint of a family that is rendered with its own chat template."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rollout.serving.vllm import SHIM_DIRECTORY
from tests.chat_families.families import FAMILIES, ChatFamily, write_checkpoint
from tests.needs.vllm.servers import VENV, LiveServer, ServerStarter

collect_ignore_glob = [] if VENV else ["test_*.py"]

_ALWAYS = ("Llama 3.x", "Mistral")
"""The families that `.ci/run` plays: one with byte-level BPE, and one that writes a space at the beginning."""
_ONLY_FULL = pytest.mark.skipif(
    os.environ.get("ROLLOUT_TESTS") != "full", reason="each family starts a server; set ROLLOUT_TESTS=full"
)


@dataclass(frozen=True, slots=True)
class ServedFamily:
    """A family, and the server of its tiny checkpoint."""

    family: ChatFamily
    live: LiveServer


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in _ALWAYS else _ONLY_FULL, id=name) for name in FAMILIES],
)
def served(
    request: pytest.FixtureRequest, media: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedFamily]:
    family = FAMILIES[request.param]
    directory = write_checkpoint(family, tmp_path_factory.mktemp("family"))
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{SHIM_DIRECTORY}"}
    command = [f"{VENV}/bin/python", "-m", "tests.chat_families.networks", str(directory), family.name]
    subprocess.run(command, check=True, env=environment, cwd=repository)
    no_checkpoints: Callable[..., Path] = FAMILIES.__getitem__  # type: ignore[assignment]
    starter = ServerStarter(no_checkpoints, media, tmp_path_factory.mktemp("logs"))
    try:
        live = starter.start("chat-template", "template", model=directory)
        live.wait_until_ready()
        yield ServedFamily(family, live)
    finally:
        starter.stop_all()
