"""`rollout run`: exit codes, reports, errors and signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from tests.unit.cli.in_process import run_cli, set_options
from transports import open_queue


def run_in_subprocess(*arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `rollout` in a new interpreter, with a directory on its path."""
    env = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, "-m", "rollout", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def error_paragraph(result: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the error that the command printed; it has no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr[result.stderr.index("rollout: ") :]


@pytest.mark.parametrize("mode", ["offload", "inline"])
def test_the_json_report_has_the_totals_of_the_run(color_codeword: Sequence[str], mode: str) -> None:
    result = run_cli("run", *color_codeword, "--set", f"images.mode={mode}", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    expected = {"rollouts": 6, "status": {"ok": 6}, "reward_mean": 1.0, "turns": 30, "images": 24}
    assert {key: report[key] for key in expected} == expected
    assert report["queue_bytes"] > 0
    assert report["seconds"] > 0
    trainer = {"trajectories": 6, "samples": 6, "violations": 0}
    assert {key: report["trainer"][key] for key in trainer} == trainer


def test_the_run_directory_has_configuration_images_log_and_trajectories(color_codeword: Sequence[str]) -> None:
    run_dir = Path(json.loads(run_cli("run", *color_codeword, "--json").stdout)["run_dir"])
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["tasks"] == {"source": None, "count": 3, "group_size": 2, "seed": 0, "turns": 4}
    # The rollouts of a task see the same images, and each image is stored once.
    assert len(list((run_dir / "assets" / "images").iterdir())) == 12
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    finished = [line for line in lines if line["event"] == "rollout finished"]
    assert {line["rollout"] for line in finished} == {f"00000{task}.{sample}" for task in range(3) for sample in (0, 1)}
    assert all(line["run"] == run_dir.name for line in lines)
    assert list((run_dir / "trajectories").iterdir())


def test_the_summary_has_rollouts_rewards_turns_and_checks(color_codeword: Sequence[str]) -> None:
    result = run_cli("run", *color_codeword)
    assert result.returncode == 0
    for expected in (
        "6 of 6",
        "1.000",
        "prompts  100 % of 24 later turns bridged\n",
        "24 different images)",
        "3 groups, 6 samples",
        "all checks passed",
        "scripted",
    ):
        assert expected in result.stdout


def test_a_run_needs_neither_torch_nor_transformers_nor_vllm(color_codeword: Sequence[str], tmp_path: Path) -> None:
    for name in ("torch", "transformers", "vllm"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    result = run_in_subprocess("run", *color_codeword, "--json", path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["reward_mean"] == 1.0


def test_an_environment_beside_its_yaml_is_played_and_its_bug_is_shown_once(
    color_codeword: Sequence[str], tmp_path: Path
) -> None:
    (tmp_path / "coin.py").write_text(
        "from rollout import Environment, Score\n"
        "class Coin(Environment):\n"
        "    async def run(self, task, model):\n"
        "        if task.index == 1: raise ValueError('a bug of its own')\n"
        "        reply = await model.chat([{'role': 'user', 'content': 'Heads or tails?'}])\n"
        "        return Score(reward=1.0, metrics={'length': len(reply.text)})\n"
    )
    (tmp_path / "coin.yaml").write_text(
        Path(color_codeword[0])
        .read_text()
        .replace("rollout.environments.color_codeword:ColorCodeword", "coin:Coin")
        .replace("  turns: 4 # how many images a rollout has\n", "")
    )
    path = str(tmp_path / "coin.yaml")
    result = run_in_subprocess("run", path, "--set", "tasks.count=3", "--json", path=tmp_path)
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["status"] == {"ok": 8, "failed": 4}
    text = run_cli("run", path, "--set", "tasks.count=3")
    assert text.stdout.count("a bug of its own')") == 1, "one bug is shown once"
    assert re.search(r"^000001\.0 \(and 3 others\) failed: *$", text.stdout, re.MULTILINE)
    assert re.search(rf'^ +File "{re.escape(str(tmp_path))}/coin\.py", line 4, in run$', text.stdout, re.MULTILINE)
    assert "  ValueError: a bug of its own\n" in text.stdout


@pytest.mark.parametrize("command", ["run", "launch"])
def test_an_error_in_init_ends_a_run_before_it_writes_a_file(
    tmp_path: Path, one_line_environment: Callable[[str], str], command: str
) -> None:
    path = one_line_environment("pass\n    def __init__(self, settings): raise ValueError('bug')")
    result = run_cli(command, path, "--set", f"run.directory={tmp_path}/runs")
    assert result.returncode == 2, result.stderr
    assert ":OneLine cannot be created:" in result.stderr
    assert re.search(r'File ".+\.py", line 4, in __init__', result.stderr)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_score_is_shown_in_one_line(tmp_path: Path, one_line_environment: Callable[[str], str]) -> None:
    text = run_cli("run", one_line_environment("return 1.0"), "--set", f"run.directory={tmp_path}")
    assert text.returncode == 1
    line = r"000000\.0 \(and 3 others\) failed: ScoreError: OneLine\.run \(.+\.py, line 3\) returned a float; write .+"
    assert re.search(f"^{line}$", text.stdout, re.MULTILINE)


@pytest.fixture
def buggy(tmp_path: Path, one_line_environment: Callable[[str], str]) -> list[str]:
    """Return the arguments of a run in which every rollout raises an error."""
    config = one_line_environment("raise ValueError('a bug of its own')")
    return [config, *set_options(f"run.directory={tmp_path}")]


def test_the_summary_of_a_run_without_turns_has_no_bytes_of_a_turn(buggy: Sequence[str]) -> None:
    text = run_cli("run", *buggy)
    assert text.returncode == 1
    assert re.search(r"^queue +[\d,]+ bytes$", text.stdout, re.MULTILINE)


def test_a_run_whose_rollouts_all_fail_stops_early_and_shows_the_error(buggy: Sequence[str]) -> None:
    text = run_cli("run", *buggy, *set_options("tasks.count=5000", "worker.concurrency=4"))
    assert text.returncode == 1
    assert "ValueError: a bug of its own" in text.stdout
    (failed,) = re.findall(r"of 20000  \(.*?(\d+) failed", text.stdout)
    assert 16 <= int(failed) < 1000
    assert "the run stops, because too many rollouts of run failed: all" in text.stderr


def test_without_a_limit_every_rollout_may_fail(buggy: Sequence[str]) -> None:
    result = run_cli("run", *buggy, "--json", *set_options("tasks.count=5", "run.max_failed=1.0"))
    assert (result.returncode, json.loads(result.stdout)["status"], result.stderr) == (1, {"failed": 20}, "")


def test_only_the_owner_can_read_the_configuration_that_a_run_writes(color_codeword: Sequence[str]) -> None:
    report = json.loads(run_cli("run", *color_codeword, "--json").stdout)
    assert (Path(report["run_dir"]) / "config.yaml").stat().st_mode & 0o777 == 0o600


def test_a_warning_names_the_limit_that_stopped_every_rollout(color_codeword: Sequence[str]) -> None:
    short = ("--set", "engine.sampling.max_tokens=1")
    text = run_cli("run", *color_codeword, *short)
    assert (text.returncode, text.stderr) == (0, "")
    assert (
        "every rollout was stopped by the length limit of an answer: raise engine.sampling.max_tokens (now 1)"
        in text.stdout
    )
    assert json.loads(run_cli("run", *color_codeword, *short, "--json").stdout)["limits"] == {"tokens": 6}


def test_run_and_doctor_report_how_many_rows_of_the_source_are_used(
    tmp_path: Path, one_line_environment: Callable[[str], str]
) -> None:
    path = Path(one_line_environment("from rollout import Score; return Score(1.0)"))
    path.write_text(path.read_text().replace("{count: 1}", "{source: cities.jsonl, group_size: 1}"))
    (tmp_path / "cities.jsonl").write_text("{}\n" * 40)
    all_rows, some = "40 of 40 rows of cities.jsonl", "16 of 40 rows of cities.jsonl (tasks.count)"
    few = set_options("tasks.count=16", f"run.directory={tmp_path}")
    assert re.search(rf"^tasks +{re.escape(all_rows)}$", run_cli("run", str(path), *few[2:]).stdout, re.MULTILINE)
    assert some in run_cli("run", str(path), *few).stdout
    assert all_rows in run_cli("doctor", str(path)).stdout
    assert some in run_cli("doctor", str(path), *few).stdout
    rows = json.loads(run_cli("run", str(path), "--json", *few).stdout)["rows"]
    assert (rows["used"], rows["total"]) == (16, 40)


@pytest.mark.parametrize(
    ("settings", "exit_code", "text"),
    [
        (["engine.sampling.temprature=0"], 2, "unknown key; did you mean 'temperature'?"),
        (["model.path=/no/model"], 2, "/no/model"),
        (["queue.url=carrier-pigeon://loft"], 2, "unknown scheme 'carrier-pigeon://'"),
        (
            ["engine.urls=['http://127.0.0.1:9']", "engine.retries=0"],
            1,
            "no answer from the engine at http://127.0.0.1:9/v1/models",
        ),
    ],
    ids=["key", "model", "queue", "engine"],
)
def test_a_run_that_cannot_begin_ends_with_a_message_and_an_exit_code(
    color_codeword: Sequence[str], settings: Sequence[str], exit_code: int, text: str
) -> None:
    assert text in error_paragraph(run_cli("run", *color_codeword, *set_options(*settings)), exit_code)


def test_doctor_ends_with_2_if_the_configuration_is_wrong(color_codeword: Sequence[str]) -> None:
    assert run_cli("doctor", *color_codeword, "--set", "tasks.count=-1").returncode == 2


def test_a_run_that_waits_for_an_engine_reports_it(
    color_codeword: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine.client._FIRST_RETRY_PAUSE_SECONDS", 0.4)
    options = set_options("engine.urls=['http://127.0.0.1:9']", "engine.retries=1")
    result = run_cli("run", *color_codeword, *options)
    assert result.returncode == 1
    waits, ends = result.stderr.splitlines()
    assert waits.startswith("waiting, because no engine can be used yet. Up to 1 retries follow (engine.retries)")
    assert ends.startswith("rollout: no answer from the engine at http://127.0.0.1:9/v1/models")


def test_a_500_of_the_engine_is_shown_with_its_text(color_codeword: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "failing_policy.py").write_text(
        "class Failing:\n    def answer(self, prompt, images): raise ValueError('no colours left')\n"
    )
    settings = ("engine.embedded.policy=failing_policy:Failing", "worker.halt_after=1")
    result = run_in_subprocess("run", *color_codeword, *set_options(*settings), path=tmp_path)
    assert result.returncode == 1
    shown = re.compile(
        r"the engine at http://127\.0\.0\.1:\d+/\S+ answered with status 500: .+: ValueError: no colours left"
    )
    assert shown.search(" ".join(result.stderr.split()))
    assert "Traceback" not in result.stderr


def test_the_error_for_a_wrong_model_name_lists_the_served_models(color_codeword: Sequence[str]) -> None:
    with EmbeddedServer(EmbeddedSettings()) as url:
        options = set_options(f"engine.urls=['{url}']", "model.name=another")
        message = error_paragraph(run_cli("run", *color_codeword, *options), 1)
    assert "does not serve the model 'another'; it serves tiny-qwen3-vl" in message


def start_run(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rollout", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupt_after_a_reward(
    process: "subprocess.Popen[str]", interrupt: Callable[[], None], exit_code: int
) -> dict[str, Any]:
    """Interrupt a run when its progress shows a reward; return its report."""
    assert process.stderr is not None
    next(line for line in process.stderr if "reward" in line)
    interrupt()
    out, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    assert "Traceback" not in err
    report: dict[str, Any] = json.loads(out)
    assert report["status"]["ok"] >= 1
    assert report.get("error", "") in err
    return report


def test_ctrl_c_ends_a_run_with_a_report_of_what_was_done(color_codeword: Sequence[str]) -> None:
    slow = set_options("engine.embedded.latency_ms=300", "worker.concurrency=8", "tasks.count=40")
    with start_run(*color_codeword, *slow, "--json") as process:
        report = interrupt_after_a_reward(process, lambda: process.send_signal(signal.SIGINT), 130)
    assert report["status"]["abandoned"] >= 1
    assert report["rollouts"] == sum(report["status"].values()) < 80
    assert report["trainer"]["violations"] == 0


@pytest.mark.parametrize("command", ["doctor", "run"])
def test_an_argument_that_the_template_does_not_know_is_refused(color_codeword: Sequence[str], command: str) -> None:
    template = "model.template={enable_thinking: false}"
    qwen35 = set_options(template, "model.renderer=qwen3.5", "tasks.count=1")
    assert run_cli(command, *color_codeword, *qwen35).returncode == 0
    wrong = run_cli(command, *color_codeword, "--set", template)
    assert wrong.returncode != 0
    assert "correct model.template (enable_thinking)" in " ".join((wrong.stdout + wrong.stderr).split())


def test_a_queue_with_records_of_another_run_is_refused(color_codeword: Sequence[str], tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"

    async def leave_something() -> None:
        async with open_queue(url) as queue:
            await queue.put((b"from another run",), key="k")

    anyio.run(leave_something)
    message = error_paragraph(run_cli("run", *color_codeword, "--set", f"queue.url={url}"), 1)
    assert "holds 1 records of another run" in message


def test_an_engine_that_dies_ends_the_run_with_a_report_of_what_was_done(color_codeword: Sequence[str]) -> None:
    server = [sys.executable, "-m", "rollout", "serve", "embedded", "--latency-ms", "100", "--allow", "/"]
    settings = ("tasks.count=60", "worker.concurrency=4", "engine.retries=0", "engine.timeout=5")
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        url = engine.stdout.readline().split(" at ")[1].split(";")[0]
        options = set_options(*settings, f"engine.urls=['{url}']")
        with start_run(*color_codeword, *options, "--json") as process:
            report = interrupt_after_a_reward(process, engine.kill, 1)
    assert url in report["error"]


def test_ctrl_c_ends_a_run_that_waits_for_an_engine(color_codeword: Sequence[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_engine:
        url = f"http://127.0.0.1:{silent_engine.getsockname()[1]}"
        with start_run(*color_codeword, "--set", f"engine.urls=['{url}']") as process:
            silent_engine.settimeout(60)
            connection, _ = silent_engine.accept()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
            connection.close()
    assert process.returncode == 130, err


@pytest.mark.parametrize(
    ("code", "function"),
    [
        ("    def __init__(self, settings): helper()\n", "__init__"),
        ("    def tasks(self, tasks): return helper()\n", "tasks"),
        ("helper()\n", "<module>"),
    ],
)
def test_an_error_before_the_first_rollout_is_shown_with_the_users_frames(
    one_line_environment: Callable[[str], str], tmp_path: Path, code: str, function: str
) -> None:
    broken = one_line_environment("pass")
    module = tmp_path / f"{tmp_path.name}.py"
    helper = "def helper():\n    raise ValueError('a bug of its own')\n"
    module.write_text(f"{helper}{module.read_text()}{code}")
    result = run_cli("run", broken, "--set", f"run.directory={tmp_path}")
    assert (result.returncode, result.stdout) == (2, "")
    message = result.stderr
    assert re.search(rf'File "{re.escape(str(module))}", line \d+, in {function}\n', message)
    assert f'File "{module}", line 2, in helper\n' in message
    assert message.endswith("  ValueError: a bug of its own\n")


def test_a_run_goes_on_when_records_that_it_has_read_fill_the_queue(color_codeword: Sequence[str]) -> None:
    url = "file://{run_dir}/trajectories?high_water=16kB"
    options = set_options("tasks.count=12", "worker.concurrency=2", f"queue.url={url}")
    result = run_cli("run", *color_codeword, "--json", *options)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == {"ok": 24}
