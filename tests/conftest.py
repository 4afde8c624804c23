"""What many tests need: the small model that we ship, its adapter, and a private directory for a run."""

from pathlib import Path

import pytest
from hypothesis import settings

from renderers_adapter.adapter import RendererAdapter

# The same examples in every run, and no verdict by the clock of a busy machine.
settings.register_profile("rollout", deadline=None, derandomize=True)
settings.load_profile("rollout")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return ROOT / "rollout" / "serving" / "tiny_qwen3_vl"


@pytest.fixture(scope="session")
def adapter(tiny_model: Path) -> RendererAdapter:
    return RendererAdapter.open(tiny_model, "qwen3-vl")
