"""What `rollout doctor --agent` says of the environment `Program` when its normal play fails, or asks nothing."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollout.config.load import load_config
from rollout.doctor.agent.checking import check_agent
from rollout.doctor.results import CheckStatus
from tests.unit.doctor.agent.checked import LIMITS, Checked

ASK = """
import json, os, urllib.request
address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
body = {"model": os.environ["OPENAI_MODEL"], "messages": [{"role": "user", "content": "Hi"}]}
urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)).read()
"""
SCORES = """
def one(task, work, transcript, exit_code):
    return 1.0

def broken(task, work, transcript, exit_code):
    raise ValueError("no answer; none at all. Really none")
"""


@pytest.fixture(autouse=True)
def _own_scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a module `scores` of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("scores", None)


def check_program(
    directory: Path, program: str, seconds: float = LIMITS.seconds, max_tokens: int = 512, **settings: Any
) -> Checked:
    """Check a program of Python, without faults."""
    (directory / "scores.py").write_text(SCORES)
    (directory / "tasks.jsonl").write_text("{}\n")
    environment = {
        "class": "rollout.environments.program:Program",
        "command": ["{python}", "-c", program],
        "score": "scores:one",
        **settings,
    }
    if "agent" in environment:
        del environment["command"]
    config = {
        "environment": environment,
        "tasks": {"source": "tasks.jsonl"},
        "model": {"name": "policy", "path": "builtin:tiny", "renderer": "qwen3"},
        "engine": {"sampling": {"max_tokens": max_tokens}},
    }
    (directory / "agent.yaml").write_text(json.dumps(config))
    loaded = load_config(directory / "agent.yaml", [])
    results, exit_code = check_agent(loaded, lambda _: None, replace(LIMITS, seconds=seconds), ())
    return Checked({result.subject.removeprefix("agent "): result for result in results}, exit_code)


def test_a_score_function_that_raises_is_no(tmp_path: Path) -> None:
    checked = check_program(tmp_path, ASK, score="scores:broken")
    end = checked.problem("end")
    raised = "ScoreFunctionFailed: the score scores:broken raised ValueError: no answer; none at all. Really none"
    error = f"its own play failed, so it would not train: {raised}"
    assert end.message == error
    assert end.fix is not None
    assert end.fix.startswith("repair environment.score: ")
    assert checked.rows["agent"].message == f"no: end: {error}"


def test_a_score_command_that_does_not_exist_is_no(tmp_path: Path) -> None:
    end = check_program(tmp_path, ASK, score={"command": ["./no-such-command"]}).problem("end")
    assert "the program ./no-such-command cannot be started" in end.message
    assert end.fix is not None
    assert end.fix.startswith("repair environment.score: ")


def test_a_program_that_fails_after_its_last_turn_is_no(tmp_path: Path) -> None:
    checked = check_program(tmp_path, f"{ASK}\nprint('x ' * 1000, flush=True)\nraise ValueError('at the end')")
    end = checked.problem("end")
    what = "its own play failed, so it would not train: ProgramFailed: the program ended with the exit code 1"
    assert end.message.startswith(f"{what}. Its last lines: … ")
    assert end.message.endswith("ValueError: at the end")
    assert len(end.message) < 500
    assert end.fix is not None
    assert end.fix.startswith("repair the program: ")
    assert checked.rows["agent"].message == f"no: end: {what}"


def test_a_program_that_crashes_before_its_first_request_is_shown_with_its_command(tmp_path: Path) -> None:
    checked = check_program(tmp_path, "raise ValueError('at the start')")
    start = checked.problem("start")
    what = "the program failed before its first request: ProgramFailed: the program ended with the exit code 1"
    assert start.message.startswith(f"{what}. Its last lines: Traceback ")
    assert start.message.count("ValueError: at the start") == 1
    assert start.fix == """repair this first; the command is ["{python}", "-c", "raise ValueError('at the start')"]"""
    assert checked.rows["agent"].message == f"no: start: {what}"


def test_a_file_that_was_kept_is_not_the_output_of_a_program(tmp_path: Path) -> None:
    program = "from pathlib import Path\nPath('kept.txt').write_text('of the user')\nprint('printed')"
    checked = check_program(tmp_path, program, keep={"when": "always", "files": ["*.txt"]})
    assert checked.problem("start").message.endswith("; the end of its output: printed")


def test_a_program_that_hangs_before_its_first_request_is_shown_with_its_output(tmp_path: Path) -> None:
    program = "import time\nprint('which colour?', flush=True)\ntime.sleep(3600)"
    start = check_program(tmp_path, program, seconds=5.0).problem("start")
    assert start.message.startswith("the program failed before its first request: it was ended after ")
    assert start.message.endswith("; the end of its output: which colour?")


def test_a_placeholder_without_a_value_is_the_error(tmp_path: Path) -> None:
    checked = check_program(tmp_path, ASK, stdin="{task.absent}")
    for message in (checked.problem("start").message, checked.rows["agent"].message):
        assert "PlaceholderError: " in message
        assert "write {{task.absent}} if you mean the text itself" in message


def test_a_program_that_asks_nothing_gets_the_keys_of_the_yaml(tmp_path: Path) -> None:
    start = check_program(tmp_path, "pass").problem("start")
    assert start.message.startswith("the program asks for no answer; its rollout ends with the reward 1 ")
    assert start.fix == "it must read OPENAI_BASE_URL and OPENAI_API_KEY, or take {base_url} in environment.command"


@pytest.mark.parametrize(("max_tokens", "status"), [(512, CheckStatus.UNKNOWN), (4096, CheckStatus.OK)])
def test_short_answers_of_a_known_agent_are_shown(tmp_path: Path, max_tokens: int, status: CheckStatus) -> None:
    executable = tmp_path / "codex"
    executable.write_text(f"#!/usr/bin/env python3\n{ASK}")
    executable.chmod(0o755)
    checked = check_program(tmp_path, "", agent="codex", prompt="Hi", executable=str(executable), max_tokens=max_tokens)
    assert checked.rows["settings"].status is status
