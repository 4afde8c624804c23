"""Configurations of a run on several machines, and the command that writes its files."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli

CONFIG = """\
environment: {class: "rollout.environments.color_codeword:ColorCodeword"}
tasks: {count: 16, group_size: 4}
model: {name: policy, path: builtin:tiny, renderer: qwen3-vl}
engine: {urls: ["http://engine-0:8000", "http://engine-1:8000"], api_key_env: VLLM_API_KEY}
queue:
  url: redis://redis:6379/0?stream={environment}-trajectories&partitions=8
  tasks: redis://redis:6379/0?stream={environment}-tasks
  control: redis://redis:6379/0?stream={environment}-control
worker: {concurrency: 256, grace: 90, restarts: 20}
run: {name: NAME, directory: RUNS}
"""


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    """Return the YAML files of two environments with their runs in a shared directory."""
    files = []
    for name in ("codeword", "Sums_2"):
        text = CONFIG.replace("NAME", name).replace("RUNS", f"{tmp_path}/runs")
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(text)
    return files


@pytest.fixture
def render(configs: list[Path], tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Return a function that calls `rollout launch … --render run7` with more arguments."""
    files = [str(file) for file in configs]
    return lambda *arguments: run_cli("launch", *files, "--render", str(tmp_path / "run7"), *arguments)
