"""A small run that the tests of several commands play or check."""

from pathlib import Path

import pytest

from tests.unit.cli.in_process import set_options

SMALL = ("tasks.count=3", "tasks.group_size=2", "environment.image_size=48", "engine.sampling.temperature=0")


@pytest.fixture
def color_codeword(repository: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of a small run in a directory of this test."""
    settings = set_options(*SMALL, f"run.directory={tmp_path / 'runs'}")
    return [str(repository / "configs" / "color_codeword.yaml"), *settings]
