"""A small run, which the tests of several commands play or check."""

from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("tasks.count=3", "tasks.group_size=2", "environment.image_size=48", "engine.sampling.temperature=0")


@pytest.fixture
def color_codeword(repository: Path, tmp_path: Path) -> list[str]:
    """Arguments that play a few small rollouts below a private directory."""
    settings = [*SMALL, f"run.directory={tmp_path / 'runs'}"]
    return [str(repository / "configs" / "color_codeword.yaml"), *(a for s in settings for a in ("--set", s))]


@pytest.fixture
def one_line_environment(tmp_path: Path, tiny_model: Path) -> Callable[[str], str]:
    """Writes an environment whose `run` is this one statement, and its YAML; returns the path of the YAML."""
    module = tmp_path.name  # of its own for each test: directories of earlier tests are still searched for modules

    def write(statement: str) -> str:
        (tmp_path / f"{module}.py").write_text(
            "from rollout import Environment\n"
            "class OneLine(Environment):\n"
            f"    async def run(self, task, model): {statement}\n"
        )
        path = tmp_path / "one_line.yaml"
        path.write_text(
            f"environment: {{class: '{module}:OneLine'}}\ntasks: {{count: 1}}\n"
            f"model: {{name: tiny-qwen3-vl, path: {tiny_model}, renderer: qwen3-vl}}\n"
        )
        return str(path)

    return write
