"""`rollout doctor`: its output and its exit codes."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from tests.unit.cli.in_process import run_cli


def test_doctor_shows_what_is_right(color_codeword: Sequence[str]) -> None:
    result = run_cli("doctor", *color_codeword)
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in ("configuration", "3 tasks, 2 rollouts of each", "renderer qwen3-vl, images qwen_vl", "file://"):
        assert expected in result.stdout


def test_doctor_wraps_no_line_in_a_pipe(color_codeword: Sequence[str]) -> None:
    lines = run_cli("doctor", *color_codeword).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", subject]
        for subject in ("configuration", "environment", "tasks", "images", "engine", "model", "queue", "disk")
    ]


def test_doctor_asks_the_engines_only_if_the_run_could_begin(color_codeword: Sequence[str], tmp_path: Path) -> None:
    with EmbeddedServer(EmbeddedSettings(allowed_directories=(tmp_path,))) as url:
        live = (*color_codeword, "--live", "--set", f'engine.urls=["{url}"]')
        good = run_cli("doctor", *live)
        wrong = run_cli("doctor", *live, "--set", "queue.url=file://{run_dir}/t?high_water=80KB")
    assert good.returncode == 0, good.stdout
    assert {line.partition("  ")[0] for line in good.stdout.splitlines()} <= {"ok", "?", "-", ""}
    assert wrong.returncode == 2
    assert "?  engines  not checked" in wrong.stdout


def test_forward_makes_the_live_checks_too(color_codeword: Sequence[str]) -> None:
    result = run_cli("doctor", *color_codeword, "--forward")  # the engine is embedded, so there is nothing to ask
    assert result.returncode == 0, result.stdout
    assert "there is no engine to check" in result.stdout


def test_doctor_shows_an_error_in_init_once_with_its_line(
    one_line_environment: Callable[[str], str],
) -> None:
    result = run_cli("doctor", one_line_environment("pass\n    def __init__(self, settings): raise ValueError('bug')"))
    assert result.returncode == 2
    assert re.search(r"^bad +environment +.+:OneLine cannot be created:", result.stdout, re.MULTILINE)
    assert re.search(r'File ".+\.py", line 4, in __init__', result.stdout)
    assert result.stdout.count("ValueError: bug") == 1


def test_doctor_shows_how_to_fix_a_problem(color_codeword: Sequence[str]) -> None:
    unreachable = ("--live", "--set", 'engine.urls=["http://127.0.0.1:1"]', "--set", "engine.retries=0")
    result = run_cli("doctor", *color_codeword, *unreachable)
    assert result.returncode == 1, result.stdout
    assert "fix: start it: rollout serve embedded --name tiny-qwen3-vl --port 1" in " ".join(result.stdout.split())


def test_doctor_prints_one_json_object(color_codeword: Sequence[str]) -> None:
    result = run_cli("doctor", *color_codeword, "--json", "--set", "engine.urls=['http://127.0.0.1:1']")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"], report["exit_code"]) == (0, True, 0)
    assert {check["subject"]: check["status"] for check in report["checks"]} == {
        **dict.fromkeys(("configuration", "environment", "tasks", "images", "model", "queue", "disk"), "ok"),
        "engine": "nothing",
    }
    assert set(report) == {"ok", "exit_code", "checks"}


def test_doctor_names_a_problem_and_its_fix_in_json(color_codeword: Sequence[str]) -> None:
    unreachable = ("--live", "--set", "engine.urls=['http://127.0.0.1:1']", "--set", "engine.retries=0")
    result = run_cli("doctor", *color_codeword, *unreachable, "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"], report["exit_code"]) == (1, False, 1)
    (bad,) = [check for check in report["checks"] if check["status"] == "bad"]
    assert bad["subject"] == "http://127.0.0.1:1 model"
    assert bad["fix"] == "start it: rollout serve embedded --name tiny-qwen3-vl --port 1"


def test_doctor_says_in_json_whether_the_agent_can_be_trained(color_codeword: Sequence[str]) -> None:
    no_agent = (*color_codeword, "--agent", "--json", "--set", "tasks.source=queue")
    result = run_cli("doctor", *no_agent)
    report = json.loads(result.stdout)
    assert (result.returncode, report["exit_code"]) == (2, 2)
    assert report["agent"]["can_be_trained"] is None
    assert report["agent"]["verdict"] == report["checks"][-1]["message"]


def test_a_file_that_cannot_be_read_is_one_json_object_with_the_error(tmp_path: Path) -> None:
    result = run_cli("doctor", str(tmp_path / "none.yaml"), "--json")
    assert result.returncode == 2
    assert list(json.loads(result.stdout)) == ["error"]
