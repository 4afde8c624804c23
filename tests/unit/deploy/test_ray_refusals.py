"""The errors of `--on ray` before a run begins; tests/needs/services/test_ray.py tests the rest."""

import sys
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli


def test_the_error_without_ray_names_the_extra(
    configs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run_cli("launch", str(configs[0]), "--on", "ray")
    assert result.returncode == 2
    assert "pip install 'rollout-rl[ray]'" in result.stderr


def test_ray_needs_the_number_of_workers(configs: list[Path]) -> None:
    result = run_cli("launch", str(configs[0]), "--on", "ray", "--workers", "0")
    assert result.returncode == 2
    assert "--workers (for each" in result.stderr
