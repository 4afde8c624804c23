"""The line `gateway` of the summaries of `rollout run` and `rollout launch`, and the same in their JSON."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli
from tests.unit.cli.terminal import WIDTH, run_in_terminal

COUNTS = {"turns": 310, "first": 1, "bridged": 306, "exact": 295, "normalised": 12, "foreign": 2} | {
    "foreign: tool arguments edited": 1, "foreign: message inserted": 1, "retries": 1,
}  # fmt: skip
LINE = (
    "1,240 turns, 99 % bridged; echoes: 1,180 exact, 48 normalised, 8 foreign (message inserted 4, "
    "tool arguments edited 4); 4 repeated"
)
"""The line for the four rollouts of a run."""


@pytest.fixture
def arguments(one_line_environment: Callable[[str], str], tmp_path: Path) -> tuple[str, ...]:
    """Return the arguments of a run in which each rollout has the same counts."""
    reply = "await model.chat([{'role': 'user', 'content': 'Heads or tails?'}])"
    config = one_line_environment(
        f"model.counters.gateway.update({COUNTS}); {reply}; return __import__('rollout').Score(1.0)"
    )
    return (config, "--set", f"run.directory={tmp_path / 'runs'}")


@pytest.mark.parametrize("command", ["run", "launch"])
def test_the_summary_has_a_line_of_what_programs_did(arguments: tuple[str, ...], command: str) -> None:
    result = run_cli(command, *arguments)
    assert result.returncode == 0, result.stderr
    assert f"\ngateway  {LINE}\n" in result.stdout


@pytest.mark.parametrize("command", ["run", "launch"])
def test_the_json_has_the_counts_of_what_programs_did(arguments: tuple[str, ...], command: str) -> None:
    report = json.loads(run_cli(command, *arguments, "--json").stdout)
    assert report["gateway"] == {
        "turns": 1240,
        "first": 4,
        "bridged": 1224,
        "echoes": {"exact": 1180, "normalised": 48, "foreign": 8},
        "foreign_reasons": {"message inserted": 4, "tool arguments edited": 4},
        "retries": 4,
        "refusals": 0,
        "unknown_paths": 0,
        "unreceived": 0,
        "idle_endpoints": 0,
        "ignored_tools": {},
    }


@pytest.mark.parametrize("command", ["run", "launch"])
def test_the_line_is_wrapped_between_words_on_a_terminal(arguments: tuple[str, ...], command: str) -> None:
    shown = run_in_terminal(command, *arguments, terminal="stdout")
    assert shown.returncode == 0, shown.piped
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.terminal).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("gateway"))
    indent = lines[start].index("1,240")
    end = next(index for index in range(start + 1, len(lines)) if lines[index][:indent].strip())
    assert end - start > 1
    assert max(map(len, lines[start:end])) <= WIDTH
    assert " ".join(line[indent:] for line in lines[start:end]) == LINE


def test_a_run_without_programs_has_no_line(one_line_environment: Callable[[str], str], tmp_path: Path) -> None:
    path = one_line_environment(
        "await model.chat([{'role': 'user', 'content': 'Heads or tails?'}]); return __import__('rollout').Score(1.0)"
    )
    result = run_cli("run", path, "--set", f"run.directory={tmp_path / 'runs'}")
    assert result.returncode == 0, result.stderr
    assert "gateway" not in result.stdout


DOUBLED_V1 = """
import os, httpx
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
httpx.post(os.environ["OPENAI_BASE_URL"] + "/v1/chat/completions", headers=headers, json={})
"""
SILENT_PROGRAM = """
environment:
  class: rollout.environments.program:Program
  command: ["{python}", "-c", "{task.code}"]
  score: {command: [echo, "0"]}
tasks: {source: tasks.jsonl, group_size: 2}
model: {name: policy, path: builtin:tiny, renderer: qwen3}
engine: {embedded: {policy: "rollout.serving.arithmetic:ArithmeticPolicy"}}
run: {name: silent, directory: runs}
"""


@pytest.fixture
def program_without_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the YAML of a program that sends its request to a wrong path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"code": DOUBLED_V1}) + "\n")
    (tmp_path / "silent.yaml").write_text(SILENT_PROGRAM)
    return "silent.yaml"


@pytest.mark.parametrize("command", ["run", "launch"])
def test_the_summary_of_programs_without_a_turn_ends_with_what_to_do(program_without_a_turn: str, command: str) -> None:
    result = run_cli(command, program_without_a_turn)
    assert result.returncode == 0, result.stderr
    assert "\ngateway  0 turns; 2 to unknown paths; 2 endpoints without a turn\n" in result.stdout
    assert "all checks passed" not in result.stdout
    assert result.stdout.endswith(
        "no rollout has a turn, so nothing can train; a program that never asks the policy: "
        "rollout doctor CONFIG --agent\n"
    )
    assert "/v1/v1/chat/completions" in run_cli("logs", "runs", "--level", "warning").stdout
