"""The protocol of the installed vLLM is the recorded one, and its servers have the routes that we use."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from rollout.serving.vllm import SHIM_DIRECTORY
from tests.needs.vllm.servers import VENV, LiveServer
from tests.unit.engine.vllm_contract import CONTRACTS, Contract, differences


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The contract of the installed vLLM, recorded now."""
    directory = tmp_path_factory.mktemp("contracts")
    command = [f"{VENV}/bin/python", str(repository / "scripts" / "record_vllm_contract.py"), str(directory)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(SHIM_DIRECTORY)}
    )
    assert result.returncode == 0, result.stderr
    (file,) = directory.iterdir()
    return file


def test_the_protocol_of_the_installed_vllm_is_the_recorded_one(installed: Path) -> None:
    recorded = CONTRACTS / installed.name
    how_to_record = (
        f"Read what changed in vLLM. Then record it: PYTHONPATH={SHIM_DIRECTORY} {VENV}/bin/python "
        f"scripts/record_vllm_contract.py {CONTRACTS}, and see CONTRIBUTING.md, 'Record a new vLLM'."
    )
    assert recorded.exists(), f"no contract is recorded for this vLLM ({recorded.name}). {how_to_record}"
    found = list(differences(Contract.of_file(recorded).facts, Contract.of_file(installed).facts))
    assert found == [], f"this vLLM differs from {recorded.name} in {'; '.join(found)}. {how_to_record}"


def test_the_servers_have_the_recorded_routes(installed: Path, fleet: Mapping[str, LiveServer]) -> None:
    with fleet["qwen3-vl"].http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert Contract.of_file(installed).facts["routes"].keys() <= served
