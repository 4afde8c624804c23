"""The repositories of the coding agents have bugs that the script mends three times in four."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from examples.coding_agents.policy import MENDS, CodexPolicy, Mend, MiniSweAgentPolicy, OpencodePolicy, mend_sign
from rollout.environments.program import Program
from rollout.serving.policies import ScriptedPolicy
from rollout.testing import play
from tests.conftest import ROOT
from tests.unit.cli.in_process import run_cli, set_options

DIRECTORY = ROOT / "examples" / "coding_agents"
TASKS = [json.loads(line) for line in (DIRECTORY / "tasks.jsonl").read_text().splitlines()]
SIGN = np.asarray(Image.open(DIRECTORY / "repositories" / "shop_sign" / "sign.png").convert("RGB"))
REPOSITORIES = {name.removesuffix(".py"): mend for name, mend in MENDS.items()} | {"shop_sign": mend_sign(SIGN)}
POLICIES = [CodexPolicy(), OpencodePolicy(), MiniSweAgentPolicy()]

every_repository = pytest.mark.parametrize(("repository", "mend"), REPOSITORIES.items(), ids=REPOSITORIES)


def score(repository: str, directory: Path, old: str, new: str) -> float:
    """Return the score of a copy of a repository in which a text of its module was replaced."""
    source = DIRECTORY / "repositories" / repository
    shutil.copytree(source, directory)
    shutil.copytree(source / "tests", directory, dirs_exist_ok=True)
    module = directory / f"{repository}.py"
    module.write_text(module.read_text().replace(old, new))
    command = [sys.executable, str(DIRECTORY / "score_tests.py"), f"test_{repository}"]
    ended = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return float(ended.stdout.splitlines()[-1])


@every_repository
def test_only_the_right_edit_lets_the_tests_pass(repository: str, mend: Mend, tmp_path: Path) -> None:
    assert (DIRECTORY / "repositories" / repository / f"{repository}.py").read_text().count(mend.bug) == 1
    assert score(repository, tmp_path / "unchanged", "", "") == 0.0
    assert score(repository, tmp_path / "wrong", mend.bug, mend.wrong) == 0.0
    assert score(repository, tmp_path / "right", mend.bug, mend.right) == 1.0


@pytest.mark.parametrize("text", ["raise SystemExit(0)\n", "def (:\n", "import unittest.no_such_module\n"])
def test_a_module_that_cannot_be_imported_has_the_score_0(text: str, tmp_path: Path) -> None:
    assert score("slugs", tmp_path / "work", '"""Makes', f'{text}"""Makes') == 0.0


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "pass"])
def test_a_module_that_prints_a_score_itself_gains_nothing(end: str, tmp_path: Path) -> None:
    text = f"import os, sys\nprint('1.0', flush=True)\n{end}\n"
    assert score("slugs", tmp_path / "work", '"""Makes', f'{text}"""Makes') == 0.0


def test_every_task_names_a_repository_and_its_module() -> None:
    assert [task["repository"] for task in TASKS] == list(REPOSITORIES)
    assert all(f"mend the bug in {task['repository']}.py" in task["prompt"] for task in TASKS)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_an_edit_is_right_three_times_in_four(policy: ScriptedPolicy) -> None:
    start, end = "<|im_start|>assistant\n", "<|im_end|>\n"
    module = (DIRECTORY / "repositories" / "roman" / "roman.py").read_text()
    prompt = f"mend the bug in roman.py{end}{start}I look.{end}<tool_response>{module}</tool_response>{end}{start}"
    [slot] = policy.answer(prompt, [])
    shares = {"else -value" in text: math.exp(logit) for text, logit in slot.logits.items()}
    assert shares[True] / sum(shares.values()) == pytest.approx(0.75)


async def test_a_program_that_replaces_the_tests_gains_nothing() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "mini_swe_agent.yaml").read_text())["environment"]
    cheat = "import shutil; [shutil.copy('cheat', name) for name in ('test_slugs.py', 'tests/test_slugs.py')]"
    files = {"cheat": "import unittest\n\n\nclass Cheat(unittest.TestCase):\n    def test_nothing(self): pass\n"}
    settings |= {"command": ["{python}", "-c", cheat], "files": files, "config_dir": str(DIRECTORY)}
    del settings["agent"], settings["class"]
    played = await play(Program, TASKS[0], settings=settings, answers=[])
    assert played.reward == 0.0


@pytest.mark.parametrize("name", ["codex", "opencode", "mini_swe_agent"])
def test_a_missing_agent_is_one_error_that_says_how_to_install_it(name: str, tmp_path: Path) -> None:
    settings = set_options(f"environment.executable={tmp_path / 'agent'}", f"run.directory={tmp_path}")
    done = run_cli("doctor", str(ROOT / "configs" / f"{name}.yaml"), *settings)
    assert done.returncode != 0
    [problem] = [line for line in done.stdout.splitlines() if line.startswith("bad")]
    assert f"there is no file {tmp_path / 'agent'}." in problem
    assert " install " in problem
