"""`rollout doctor --live` with real servers: it accepts ours, and finds faults and their cures."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).parent / "world" / "pictures.yaml"


def doctor(live: Any, runs: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    keys = [f'engine.urls=["{live.url}"]', f"run.directory={runs}", f"model.renderer={live.renderer}", *settings]
    command = [sys.executable, "-m", "rollout", "doctor", str(CONFIG), "--live"]
    command += [part for key in keys for part in ("--set", key)]
    environment = {**os.environ, "MODEL": str(live.model_dir), "COLUMNS": "400", "KEY": live.api_key or "none"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
@pytest.mark.parametrize("mode", ["offload", "inline"])
def test_our_servers_pass(fleet: Mapping[str, Any], media: Path, family: str, mode: str) -> None:
    result = doctor(fleet[family], media / "runs", f"images.mode={mode}", "engine.api_key_env=KEY")
    assert result.returncode == 0, result.stdout
    assert "the same tokenizer" in result.stdout
    assert "as we computed" in result.stdout
    assert "a key that nobody may see" not in result.stdout + result.stderr


def test_runs_that_the_server_cannot_read_are_found(fleet: Mapping[str, Any], tmp_path: Path) -> None:
    result = doctor(fleet["qwen3-vl"], tmp_path / "elsewhere")
    assert result.returncode == 1, result.stdout
    assert "--allowed-local-media-path" in result.stdout


def test_the_tokenizer_of_another_model_is_found(fleet: Mapping[str, Any], media: Path, tmp_path: Path) -> None:
    live = fleet["qwen3-vl"]
    other = shutil.copytree(live.model_dir, tmp_path / "other")
    tokenizer = other / "tokenizer.json"
    image, video = '"<|image_pad|>"', '"<|video_pad|>"'
    swapped = tokenizer.read_text().replace(image, "SWAP").replace(video, image).replace("SWAP", video)
    tokenizer.write_text(swapped)
    result = doctor(live, media / "runs", f"model.path={other}")
    assert result.returncode == 1, result.stdout
    assert "the server has a different tokenizer" in result.stdout
