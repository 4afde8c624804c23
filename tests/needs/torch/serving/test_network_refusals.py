"""What a network engine refuses: weights of another model, other families, unknown tokens."""

import importlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.errors import ConfigurationError
from rollout.serving.network.engine import NetworkEngine
from rollout.serving.network.settings import NetworkSettings

safetensors: Any = importlib.import_module("safetensors.numpy")
Checkpoint = Callable[..., Path]


@pytest.mark.parametrize("fault", ["nowhere", "another family", "a tensor less", "cut short"])
def test_weights_of_another_model_are_refused_and_the_old_ones_kept(
    world: Callable[..., Any], checkpoint: Checkpoint, body: Callable[..., Any], tmp_path: Path, fault: str
) -> None:
    engine = world()
    before = engine.generate(body(seed=1))["choices"][0]["logprobs"]
    engine.client.post("/pause?mode=wait")
    call = {"method": "reload_weights", "kwargs": {"weights_path": str(damaged(fault, checkpoint, tmp_path))}}
    refused = engine.client.post("/collective_rpc", json=call)
    assert refused.status_code == 500
    assert "weights" in refused.json()["error"]["message"]
    engine.client.post("/resume")
    assert engine.generate(body(seed=1))["choices"][0]["logprobs"] == before


def damaged(fault: str, checkpoint: Checkpoint, tmp_path: Path) -> Path:
    if fault == "nowhere":
        return tmp_path / "nowhere"
    if fault == "another family":
        return checkpoint("qwen2.5-vl")
    directory = Path(shutil.copytree(checkpoint(), tmp_path / "damaged"))
    file = directory / "model.safetensors"
    if fault == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
        return directory
    tensors = safetensors.load_file(file)
    del tensors["lm_head.weight"]
    safetensors.save_file(tensors, file, metadata={"format": "pt"})
    return directory


def test_a_token_outside_the_vocabulary_cannot_be_allowed(world: Callable[..., Any], body: Callable[..., Any]) -> None:
    refused = world().client.post("/inference/v1/generate", json=body(allowed_token_ids=[1, 999_999]))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "sampling_params.allowed_token_ids"


def test_a_checkpoint_of_another_family_is_refused_by_name(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigurationError, match=r"checkpoint of qwen3; .*rollout serve vllm"):
        NetworkEngine(NetworkSettings(checkpoint("text")))


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        NetworkEngine(NetworkSettings(tiny_model))


def test_the_command_serves_a_checkpoint_until_a_signal(checkpoint: Checkpoint, body: Callable[..., Any]) -> None:
    command = [sys.executable, "-m", "rollout", "serve", "transformers", str(checkpoint()), "--name", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            yaml = "".join(process.stdout.readline() for _ in range(3))
            [choice] = httpx.post(f"{url}/inference/v1/generate", json=body(), timeout=60).json()["choices"]
            assert len(choice["token_ids"]) == 8
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"engine: {{urls: [{url}]}}" in yaml
