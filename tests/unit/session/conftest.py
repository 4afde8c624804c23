"""The model that we ship, with some pictures, and rollouts whose answers a test gives."""

from pathlib import Path

import pytest

from tests.programs.programs import ProgramResources, make_resources
from tests.unit.session.scripted import ScriptedRollout


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ProgramResources:
    return make_resources(tmp_path_factory.mktemp("images"), tiny_model)


@pytest.fixture
async def script(resources: ProgramResources) -> ScriptedRollout:
    made = ScriptedRollout(resources, resources.pools["qwen3-vl"])
    await made.in_process.begin()
    return made


@pytest.fixture
async def thinking(resources: ProgramResources) -> ScriptedRollout:
    made = ScriptedRollout(resources, resources.pools["qwen3.5"])
    await made.in_process.begin()
    return made
