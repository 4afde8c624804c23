"""The file of docs/gateway.md that needs no SDK runs, and the tables of the page name everything that they must name.

The other file runs in tests/needs/agents.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.config.gateway import GatewayConfig, GatewayLimits
from rollout.gateway.addresses import EndpointAddresses
from rollout.gateway.rewards import REWARD_PATHS
from rollout.records.conversations import RootKind
from tests.guide_pages import GuidePage
from tests.unit.cli.in_process import run_cli

PAGE = GuidePage.read("gateway.md")


def test_every_block_of_the_page_is_a_file_or_output() -> None:
    assert set(PAGE.files) == {"careful.py", "clients.py"}
    assert PAGE.count_blocks() == len(PAGE.files) + PAGE.count_blocks("text")


def test_the_environment_of_the_page_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "careful.py").write_text(PAGE.files["careful.py"])
    config = tmp_path / "careful.yaml"
    config.write_text(
        "environment: {class: 'careful:Careful'}\n"
        "tasks: {count: 2, group_size: 1}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    result = run_cli("run", str(config), "--json")
    sys.modules.pop("careful", None)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["status"] == {"ok": report["rollouts"]}
    assert report["gateway"]["turns"] > 0
    assert report["trainer"]["violations"] == 0


def test_the_rule_of_the_page_makes_the_title_auxiliary(tmp_path: Path) -> None:
    (tmp_path / "careful.py").write_text(PAGE.files["careful.py"])
    program = (
        "import asyncio\n"
        "from careful import Careful\n"
        "from rollout.testing import play\n"
        "played = asyncio.run(play(Careful, answers=['Adding', 'It is 1 of 2, 3, 4, 5, 6, 7, 8, 9 or 10.']))\n"
        "print([str(kind) for kind in played.trajectory.root_kinds.values()], played.reward, played.turn_rewards)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['auxiliary'] 1.0 {0: 0.1}"


def test_the_table_has_every_key_of_the_section() -> None:
    keys = {f"gateway.{name}" for name in GatewayConfig.model_fields if name != "limits"}
    keys |= {f"gateway.limits.{name}" for name in GatewayLimits.model_fields}
    assert sorted(row[0].strip("`") for row in PAGE.rows("key")) == sorted(keys)


def test_the_page_explains_every_kind_of_root() -> None:
    kinds = ["sub-agent" if kind is RootKind.SUBAGENT else kind.value for kind in RootKind]
    assert [row[0] for row in PAGE.rows("kind")] == kinds


def test_the_page_names_every_variable_of_a_program() -> None:
    (row,) = re.findall(r"^\| `environ` \| (.*) \|$", PAGE.text, re.MULTILINE)
    addresses = EndpointAddresses(address="127.0.0.1:1", model="model", key="key")
    assert re.findall(r"`(\w+)`", row) == list(addresses.environ())


def test_the_page_names_every_path_of_the_reward() -> None:
    assert {path for path in REWARD_PATHS if f"`POST {path}`" not in PAGE.text} == set()
