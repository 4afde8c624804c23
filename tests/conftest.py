"""What many tests need: the small model that we ship, its adapter, and a private directory for a run."""

from pathlib import Path

import pytest

from renderers_adapter.adapter import RendererAdapter

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
