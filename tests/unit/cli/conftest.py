"""A small run, which the tests of several commands play or check."""

from pathlib import Path

import pytest

SMALL = ("tasks.count=3", "tasks.group_size=2", "environment.image_size=48", "engine.sampling.temperature=0")


@pytest.fixture
def color_codeword(repository: Path, tmp_path: Path) -> list[str]:
    """Arguments that play a few small rollouts below a private directory."""
    settings = [*SMALL, f"run.directory={tmp_path / 'runs'}"]
    return [str(repository / "configs" / "color_codeword.yaml"), *(a for s in settings for a in ("--set", s))]
