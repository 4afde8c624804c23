"""A configuration with the environment of `harness.py`, an engine, and workers that use both."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy
from tests.unit.worker.harness import ScriptedEnvironment, WorkerFactory


@pytest.fixture
def config(repository: Path) -> Config:
    overrides = ("worker.halt_after=100", "worker.max_attempts=3")
    loaded = load_config(repository / "configs" / "color_codeword.yaml", overrides)
    return replace(loaded, environment_class=ScriptedEnvironment)


@pytest.fixture
async def policy(tmp_path: Path) -> AsyncIterator[PolicyClient]:
    async with embedded_policy(tmp_path / "images", sampling={"max_tokens": 8}) as opened:
        yield opened


@pytest.fixture
def workers(config: Config, policy: PolicyClient, tmp_path: Path) -> WorkerFactory:
    return WorkerFactory(config, policy, tmp_path)
