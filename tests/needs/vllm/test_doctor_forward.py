"""`rollout doctor --forward` with real servers: our checkpoint gives their log-probs, and nothing else does.

The command runs with the Python of vLLM's environment, which has torch and transformers. The packages of the tests'
environment come first.
"""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.serving.vllm import SHIM_DIRECTORY
from tests.needs.vllm.servers import VENV

CONFIG = Path(__file__).parent / "world" / "pictures.yaml"


@pytest.fixture
def forward(repository: Path, media: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Checks a server against the checkpoint in a directory."""

    def check(live: Any, checkpoint: Path) -> subprocess.CompletedProcess[str]:
        keys = {
            "engine.urls": f'["{live.url}"]',
            "engine.api_key_env": "KEY",
            "model.renderer": live.renderer,
            "run.directory": str(media / "runs"),
        }
        command = [f"{VENV}/bin/python", "-m", "rollout", "doctor", str(CONFIG), "--forward"]
        command += [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(repository), str(SHIM_DIRECTORY), sysconfig.get_paths()["purelib"]]),
            "MODEL": str(checkpoint),
            "KEY": live.api_key or "none",
        }
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return check


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_the_checkpoint_gives_the_log_probs_of_the_server(
    fleet: Mapping[str, Any], forward: Callable[..., subprocess.CompletedProcess[str]], family: str
) -> None:
    result = forward(fleet[family], fleet[family].model_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "gives the engine's log-probs" in result.stdout
    assert "because the engine computes in float32" in result.stdout
    assert 'Materializer.from_pretrained(checkpoint, backend="torchvision")' in result.stdout
    assert "processed_logprobs" in result.stdout


def test_the_weights_of_another_checkpoint_are_found(
    fleet: Mapping[str, Any],
    forward: Callable[..., subprocess.CompletedProcess[str]],
    repository: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    command = [f"{VENV}/bin/python", "-m", "rollout.serving.tiny_model", str(other), "--family", "qwen3-vl"]
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{SHIM_DIRECTORY}"}
    subprocess.run([*command, "--seed", "7"], check=True, env=environment)
    result = forward(fleet["qwen3-vl"], other)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "other weights than this checkpoint" in result.stdout
    assert "set model.path to the checkpoint that it serves" in result.stdout


def test_the_normalisation_of_another_family_is_found(
    fleet: Mapping[str, Any], forward: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    live = fleet["qwen2.5-vl"]
    other = shutil.copytree(live.model_dir, tmp_path / "other")
    path = other / "preprocessor_config.json"
    constants = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **constants}))
    result = forward(live, other)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "With image_mean [0.481, 0.458, 0.408] and image_std [0.269, 0.261, 0.276]" in result.stdout
    assert (
        "the engine and torchvision give the same pixels, bit for bit" in result.stdout
    )  # the line before sees nothing
