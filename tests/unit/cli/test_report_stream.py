"""stdout has only the report of a command, also if the user's code prints."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import rollout.config.load
from tests.unit.cli.in_process import run_cli

PRINTS = """
import os, subprocess, sys
from rollout import Environment, Score
print("printed at import")
class Noisy(Environment):
    async def run(self, task, model):
        print("printed by print")
        print("half a character: \\ud83d")
        os.write(1, b"written \\xff below Python\\n")
        sys.stdout.buffer.write(b"written \\xff as bytes\\n")
        subprocess.run([sys.executable, "-c", "print('printed by a process')"])
        await model.chat([{"role": "user", "content": "Heads or tails?"}])
        return Score(reward=1.0, metrics={"heads": 0.25})
"""
EVERYTHING_PRINTED = (
    b"printed at import\n",
    b"printed by print\n",
    b"half a character: \\ud83d\n",
    b"written \xff below Python\n",
    b"written \xff as bytes\n",
    b"printed by a process\n",
)


@pytest.fixture
def noisy(tmp_path: Path, tiny_model: Path) -> str:
    """Return the YAML of an environment that prints in every possible way."""
    (tmp_path / "noisy_environment.py").write_text(PRINTS)
    path = tmp_path / "noisy.yaml"
    path.write_text(
        "environment: {class: 'noisy_environment:Noisy'}\ntasks: {count: 1, group_size: 1}\n"
        f"model: {{name: tiny-qwen3-vl, path: {tiny_model}, renderer: qwen3-vl}}\nrun: {{directory: {tmp_path}}}\n"
    )
    return str(path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rollout", *arguments]


def run_in_subprocess(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command(*arguments), capture_output=True, timeout=60, check=False)


def test_stdout_has_only_the_json_if_an_environment_prints(noisy: str) -> None:
    result = run_in_subprocess("run", noisy, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(b"\n") == 1
    assert json.loads(result.stdout)["metrics"] == {"heads": 0.25}
    assert [text for text in EVERYTHING_PRINTED if text not in result.stderr] == []


def test_stdout_has_only_the_summary_if_an_environment_prints(noisy: str) -> None:
    result = run_in_subprocess("run", noisy)
    assert result.stdout.startswith(b"rollouts  1 of 1  (1 ok)\nreward  1.000  heads 0.250\n")
    assert [text for text in EVERYTHING_PRINTED if text in result.stdout] == []


def test_stdout_has_only_the_json_of_a_launch(noisy: str, tmp_path: Path) -> None:
    result = run_in_subprocess("launch", noisy, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["metrics"] == report["environments"]["run"]["metrics"] == {"heads": 0.25}
    assert EVERYTHING_PRINTED[0] in result.stderr, "the launch itself imports the module"
    (output,) = tmp_path.glob("*/workers/*.out")
    assert [text for text in EVERYTHING_PRINTED if text not in output.read_bytes()] == []


def test_stdout_has_only_the_json_of_a_replay(noisy: str) -> None:
    run_directory = json.loads(run_in_subprocess("run", noisy, "--json").stdout)["run_dir"]
    result = run_in_subprocess("replay", run_directory, "000000.0", "--config", noisy, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["same"] is True
    assert [text for text in EVERYTHING_PRINTED if text not in result.stderr] == []


def test_an_error_before_the_report_is_a_json_object() -> None:
    result = run_cli("run", "nowhere.yaml", "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"].startswith("nowhere.yaml: cannot be read")
    assert result.stderr.startswith("rollout: nowhere.yaml: cannot be read")


def test_ctrl_c_before_the_report_is_a_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout.config.load, "load_config", interrupt)
    result = run_cli("run", "any.yaml", "--json")
    assert (result.returncode, json.loads(result.stdout)) == (130, {"error": "interrupted"})


def test_a_wrong_command_line_writes_nothing_to_stdout() -> None:
    result = run_cli("run", "any.yaml", "--json", "--unknown")
    assert (result.returncode, result.stdout) == (2, "")


def test_launch_on_slurm_prints_json(color_codeword: Sequence[str], tmp_path: Path) -> None:
    directory = tmp_path / "slurm"
    result = run_cli("launch", *color_codeword, "--on", "slurm", "--render", str(directory), "--json")
    assert json.loads(result.stdout)["start"] == f"{directory}/submit.sh"


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["run", "--json"]], ids=" ".join)
def test_a_command_ends_without_an_error_text_if_its_reader_closes_the_pipe(
    color_codeword: Sequence[str], arguments: Sequence[str]
) -> None:
    config = () if arguments == ["--help"] else color_codeword
    with subprocess.Popen(command(*arguments, *config), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    printed = re.sub(
        rb"^(starting|\d+/\d+ rollouts).*\n", b"", err, flags=re.MULTILINE
    )  # without the progress of a slow run
    assert (process.returncode, printed) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("command_name", ["--version", "doctor"])
def test_a_full_stdout_is_reported_in_one_line(color_codeword: Sequence[str], command_name: str) -> None:
    config = () if command_name == "--version" else color_codeword
    with open("/dev/full", "w") as full:
        result = subprocess.run(command(command_name, *config), stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    assert b"No space left on device" in result.stderr
