"""The files and the commands of docs/agents.md run, and its tables name everything that they must name.

The files that need the SDKs of providers run in tests/needs/agents.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.config.gateway import GatewayConfig, GatewayLimits
from rollout.gateway.addresses import EndpointAddresses
from rollout.gateway.foreign import ForeignReason
from rollout.records.conversations import RootKind
from tests.conftest import ROOT
from tests.unit.cli.in_process import run_cli

GUIDE = (ROOT / "docs" / "agents.md").read_text("utf-8")
FILES = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]
TABLE_KEYS = re.findall(r"^\| `(gateway\.[\w.]+)` \|", GUIDE, re.MULTILINE)
WITHOUT_SDK = {"coder": "Coder", "careful": "Careful"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All files of the guide; their modules are removed from sys.modules afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in WITHOUT_SDK:
        sys.modules.pop(name, None)


def test_every_block_of_the_guide_is_a_file_a_command_or_output() -> None:
    blocks = re.findall(r"^```(\w+)$", GUIDE, re.MULTILINE)
    assert len(blocks) == len(FILES) + blocks.count("console") + blocks.count("text")
    assert blocks.count("text") == 1
    assert len(FILES["sums.py"].splitlines()) <= 25


def test_every_command_of_the_guide_works(directory: Path) -> None:
    assert len(COMMANDS) == 4
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        if program == "rollout":
            result = run_cli(*arguments)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        else:
            command = [sys.executable, "-m", program, "-p", "no:cacheprovider", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", sorted(WITHOUT_SDK))
def test_every_environment_without_an_sdk_plays(module: str, directory: Path) -> None:
    config = directory / f"{module}.yaml"
    if not config.exists():
        config.write_text(
            f"environment: {{class: '{module}:{WITHOUT_SDK[module]}'}}\n"
            "tasks: {count: 2, group_size: 1}\n"
            "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
        )
    result = run_cli("run", str(config), "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["status"] == {"ok": report["rollouts"]}
    assert report["gateway"]["turns"] > 0
    assert report["trainer"]["violations"] == 0


def test_the_rule_of_the_guide_makes_the_title_auxiliary(directory: Path) -> None:
    program = (
        "import asyncio\n"
        "from careful import Careful\n"
        "from rollout.testing import play\n"
        "played = asyncio.run(play(Careful, answers=['Adding', 'It is 1 of 2, 3, 4, 5, 6, 7, 8, 9 or 10.']))\n"
        "print([str(kind) for kind in played.trajectory.root_kinds.values()], played.reward, played.turn_rewards)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['auxiliary'] 1.0 {0: 0.1}"


def test_the_files_of_the_coding_agents_can_be_read() -> None:
    codex = tomllib.loads(FILES["config.toml"])
    assert codex["model_provider"] in codex["model_providers"]
    opencode = json.loads(FILES["opencode.json"])
    provider, _, model = opencode["model"].partition("/")
    assert model in opencode["provider"][provider]["models"]


def test_the_table_has_every_key_of_the_section() -> None:
    keys = {f"gateway.{name}" for name in GatewayConfig.model_fields if name != "limits"}
    keys |= {f"gateway.limits.{name}" for name in GatewayLimits.model_fields}
    assert sorted(TABLE_KEYS) == sorted(keys)


def test_the_guide_explains_every_reason_and_every_kind() -> None:
    explained = set(re.findall(r"^\| ([^|`]+?) \|", GUIDE, re.MULTILINE))
    kinds = {"sub-agent" if kind is RootKind.SUBAGENT else kind.value for kind in RootKind}
    assert {reason.value for reason in ForeignReason} | kinds <= explained


def test_the_guide_names_every_variable_of_a_program() -> None:
    (row,) = re.findall(r"^\| `environ` \| (.*) \|$", GUIDE, re.MULTILINE)
    addresses = EndpointAddresses(address="127.0.0.1:1", model="model", key="key")
    assert re.findall(r"`(\w+)`", row) == list(addresses.environ())
