"""A whole run with Codex in bubblewrap."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.needs.agents.coding_clis import CODEX
from tests.needs.agents.sandboxes.conftest import WHY_NOT

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"bubblewrap does not work here: {WHY_NOT}")


def test_codex_mends_a_repository_in_bwrap(tmp_path: Path, repository: Path) -> None:
    sandbox = {"kind": "bwrap", "read": [str(repository / "examples" / "coding_agents")]}
    settings = {
        "environment.executable": str(CODEX),
        "environment.sandbox": orjson.dumps(sandbox).decode(),
        "tasks.count": "1",
        "tasks.group_size": "2",
        "run.directory": str(tmp_path),
    }
    command = [sys.executable, "-m", "rollout", "run", str(repository / "configs" / "codex.yaml")]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    end = subprocess.run(
        command, env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert end.returncode == 0, end.stderr + end.stdout
    assert "rollouts  2 of 2  (2 ok)" in end.stdout + end.stderr
    assert "100 % bridged" in end.stdout + end.stderr
