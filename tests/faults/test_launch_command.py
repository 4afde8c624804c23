"""`rollout launch` and `rollout worker`, as a user runs them."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rollout.records.task import Task
from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.manifest import create_run
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.tasks.orders import RolloutOrder, encode_order
from rollout.trainer import Consumption, PolicyPublisher, PublisherSettings, Trajectory, TrajectoryReader
from tests.unit.cli.in_process import run_cli
from transports import open_queue

SMALL = ("environment.image_size=32", "tasks.turns=1", "engine.sampling.temperature=0")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rollout", *arguments]


def set_options(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def color_codeword(repository: Path) -> str:
    return str(repository / "configs" / "color_codeword.yaml")


@contextmanager
def running_process(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_until(process: "subprocess.Popen[str]", holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def count_done(directory: Path) -> int:
    return sum(1 for _ in directory.rglob("claims/*/*.done"))


async def put_orders(url: str, count: int) -> None:
    async with open_queue(url, lease="record") as tasks:
        for index in range(count):
            order = RolloutOrder(Task(f"mine-{index}", index, seed=index, data={"codeword": ["red"]}), 0, 1)
            await tasks.put(encode_order(order), key=order.rollout_id)


async def read_trajectories(url: str, count: int, *, commit: bool = False) -> list[Trajectory]:
    found: list[Trajectory] = []
    async with asyncio.timeout(30), TrajectoryReader(open_queue(url)) as reader:
        while len(found) < count:
            if (trajectory := await reader.receive(timeout=0.1)) is not None:
                found.append(trajectory)
                if commit:
                    reader.state_dict()
                    await reader.commit()
    return found


def test_a_worker_plays_the_orders_of_another_process_until_sigterm(color_codeword: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asyncio.run(put_orders(f"file://{run}/tasks/color_codeword", 3))
    with running_process("worker", color_codeword, "--run", str(run), *set_options(SMALL)) as worker:
        wait_until(worker, lambda: count_done(run) == 3)
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=30)
    assert (worker.returncode, out, err) == (0, "", "")
    trajectories = asyncio.run(read_trajectories(f"file://{run}/trajectories", 3))
    assert {(t.run, t.environment, t.status, t.reward) for t in trajectories} == {("run", "color_codeword", "ok", 1.0)}


def test_a_paced_launch_follows_its_trainer_and_avoids_engines_that_missed_a_push(
    color_codeword: str, tmp_path: Path, write_weights: Callable[..., None]
) -> None:
    control, trajectories = f"file://{tmp_path}/control", f"file://{tmp_path}/trajectories"
    engine = EmbeddedSettings(allowed_directories=(tmp_path,), weight_version="0")
    with EmbeddedServer(engine) as updated, EmbeddedServer(engine) as missed:
        pace = ("policy.max_staleness=0", "policy.batch=8", "tasks.count=4", "tasks.group_size=4")
        where = (f'engine.urls=["{updated}","{missed}"]', f"queue.control={control}", f"queue.url={trajectories}")
        settings = set_options((*SMALL, *pace, *where, f"run.directory={tmp_path}"))
        with running_process("launch", color_codeword, "--json", *settings) as launch:
            wait_until(launch, lambda: count_done(tmp_path) == 8)
            time.sleep(0.5)
            assert count_done(tmp_path) == 8
            pushed = PublisherSettings((updated,), tmp_path / "policy", {"color_codeword": control})
            with PolicyPublisher(pushed) as publisher:
                publisher.publish(
                    1, lambda at: write_weights(at, {"w": (1,)}), {"color_codeword": Consumption(consumed=8)}
                )
                out, err = launch.communicate(timeout=60)
    assert launch.returncode == 0, err
    assert json.loads(out)["status"] == {"ok": 16}
    played = asyncio.run(read_trajectories(trajectories, 16))
    assert sorted(t.started.policy_version for t in played if t.started) == ["0"] * 8 + ["1"] * 8
    for trajectory in played:
        assert trajectory.started is not None
        sampled_by = {span.version for step in trajectory.steps for span in step.versions}
        assert sampled_by == {trajectory.started.policy_version}


def test_a_launch_with_a_full_backlog_waits_until_a_trainer_reads(color_codeword: str, tmp_path: Path) -> None:
    queue = f"queue.url=file://{tmp_path}/trajectories?high_water=4kB"
    settings = (
        *SMALL,
        queue,
        "tasks.count=4",
        "tasks.group_size=4",
        "worker.concurrency=1",
        "policy.batch=2",
        f"run.directory={tmp_path}",
    )
    with running_process("launch", color_codeword, "--json", *set_options(settings)) as launch:
        assert launch.stderr is not None
        waits = next(line for line in launch.stderr if "waiting for a trainer: the backlog of " in line)
        asyncio.run(read_trajectories(f"file://{tmp_path}/trajectories?high_water=4kB", 16, commit=True))
        continues = [line for line in launch.stderr if "continues after" in line]
        out = launch.stdout.read() if launch.stdout is not None else ""
    assert "has reached its high water of 4000 bytes, and no trainer has read and committed any record since " in waits
    assert f"play without a trainer: rollout run {color_codeword} --set" in waits
    assert continues
    report = json.loads(out)
    assert report["status"] == {"ok": 16}
    log = [json.loads(line) for line in (Path(report["run_dir"]) / "log.jsonl").read_text().splitlines()]
    assert next(entry["waited_for"] for entry in log if entry["event"] == "launch waits") == "trainer_reads"


def test_a_launch_plays_two_environments_and_prints_a_summary(color_codeword: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    (tmp_path / "coin.py").write_text(
        "from rollout import Environment, Score\n"
        "class Coin(Environment):\n"
        "    async def run(self, task, model):\n"
        "        raise ValueError('[coins] have edges')\n"
    )
    text = Path(color_codeword).read_text().replace("rollout.environments.color_codeword:ColorCodeword", "coin:Coin")
    text = text.replace("  turns: 4 # how many images a rollout has\n", "").replace(
        "name: color_codeword", "name: coin"
    )
    other.write_text(text)
    settings = set_options(
        ("tasks.count=1", "tasks.group_size=2", "engine.sampling.temperature=0", f"run.directory={tmp_path}")
    )
    with running_process("launch", color_codeword, str(other), *settings) as launch:
        out, err = launch.communicate(timeout=60)
    assert launch.returncode == 0, err
    assert "2 of 2  (2 ok)  reward 1.000" in out
    assert "2 of 2  (2 failed)  no reward" in out
    assert out.count("ValueError: [coins] have edges") == 1
    assert "coin/000000.0 (and 1 other) failed" in " ".join(out.split())


def test_a_launch_exits_with_1_if_every_rollout_failed(one_line_environment: Callable[[str], str]) -> None:
    with running_process("launch", one_line_environment("raise ValueError('a bug of its own')"), "--json") as launch:
        out, err = launch.communicate(timeout=60)
    report = json.loads(out)
    assert report["status"] == {"failed": 4}
    assert launch.returncode == 1, err
    shown = run_cli("inspect", report["run_dir"], "000000.0").stdout
    assert shown.endswith("    ValueError: a bug of its own\n"), "inspect does not show the error"


def record_outcomes(color_codeword: str, directory: Path, **ending: Any) -> Path:
    """Return the directory of a launch whose four rollouts all ended in the same way."""
    run, _ = create_run([Path(color_codeword)], ("tasks.count=1", f"run.directory={directory}"))
    claims = Claims(run.claims_path("color_codeword"))
    for sample in range(4):
        claim = claims.claim_next_attempt(f"000000.{sample}")
        claims.record_outcome(Outcome(claim.rollout_id, "000000", claim.attempt_number, **ending))
    return run.path


@pytest.mark.parametrize(("ending", "code"), [("abandoned", 1), ("failed", 1), ("unscored", 1)])
def test_a_launch_exits_with_1_if_no_rollout_has_a_reward(
    color_codeword: str, tmp_path: Path, ending: str, code: int
) -> None:
    run = record_outcomes(color_codeword, tmp_path, status=ending)
    result = run_cli("launch", "--resume", str(run), "--workers=0", "--json")
    assert (result.returncode, json.loads(result.stdout)["status"]) == (code, {ending: 4})


def test_a_launch_reports_limits_and_retries(color_codeword: str, tmp_path: Path) -> None:
    run = record_outcomes(color_codeword, tmp_path, status="ok", limit="tokens", reward=0.0, retries=2)
    resume = ("launch", "--resume", str(run), "--workers=0")
    report, text = json.loads(run_cli(*resume, "--json").stdout), run_cli(*resume).stdout
    assert (report["limits"], report["retries"], report["request_retries"]) == ({"tokens": 4}, 8, 0)
    assert report["environments"]["color_codeword"]["limits"] == {"tokens": 4}
    assert (
        "color_codeword: every rollout was stopped by the length limit of an answer: raise engine.sampling.max_tokens"
        in text
    )
    assert "8 attempts, 0 engine requests" in text


def test_a_launch_reports_how_many_rows_of_its_source_it_uses(color_codeword: str, tmp_path: Path) -> None:
    (tmp_path / "cities.jsonl").write_text('{"id": "000000"}\n{"id": "another"}\n')
    source = f"tasks.source={tmp_path}/cities.jsonl"
    run, _ = create_run(
        [Path(color_codeword)], (source, "tasks.count=1", "tasks.group_size=1", f"run.directory={tmp_path}")
    )
    claims = Claims(run.claims_path("color_codeword"))
    claims.record_outcome(
        Outcome("000000.0", "000000", claims.claim_next_attempt("000000.0").attempt_number, "ok", reward=1.0)
    )
    resume = ("launch", "--resume", str(run.path), "--workers=0")
    assert "1 of 2 rows of cities.jsonl (tasks.count)" in run_cli(*resume).stdout
    rows = json.loads(run_cli(*resume, "--json").stdout)["environments"]["color_codeword"]["rows"]
    assert (rows["used"], rows["total"]) == (1, 2)


def test_a_launch_of_a_buggy_environment_stops_early_and_can_be_resumed(
    one_line_environment: Callable[[str], str],
) -> None:
    buggy = one_line_environment("raise ValueError('a bug of its own')")
    settings = set_options(("tasks.count=2000", "worker.concurrency=4"))
    with running_process("launch", buggy, "--json", *settings) as launch:
        out, err = launch.communicate(timeout=60)
    report = json.loads(out)
    assert 16 <= report["status"]["failed"] < 2000
    assert "the run stops, because too many rollouts of run failed: all" in report["error"]
    assert report["error"] in err
    assert launch.returncode == 1
    text = Path(buggy).with_name(f"{Path(buggy).parent.name}.py")
    text.write_text(
        text.read_text().replace("raise ValueError('a bug of its own')", "from rollout import Score; return Score(1.0)")
    )
    limit = set_options(("run.max_failed=0",))
    with running_process("launch", "--resume", report["run_dir"], "--json", *limit) as resumed:
        wait_until(resumed, lambda: count_done(Path(report["run_dir"])) > 8 + report["status"]["failed"])
        resumed.send_signal(signal.SIGTERM)
        out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert json.loads(out)["status"]["failed"] == report["status"]["failed"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [([], "give the YAML of each environment"), (["--resume", "nowhere"], "nowhere: this directory does not exist")],
)
def test_a_launch_without_a_configuration_exits_with_2(arguments: list[str], complaint: str) -> None:
    result = run_cli("launch", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_only_a_launch_is_resumed(color_codeword: str, tmp_path: Path) -> None:
    settings = set_options((*SMALL, "tasks.count=1", f"run.directory={tmp_path}"))
    run = Path(json.loads(run_cli("run", color_codeword, "--json", *settings).stdout)["run_dir"])
    resumed = run_cli("launch", "--resume", str(run))
    assert (resumed.returncode, resumed.stdout) == (2, "")
    assert f"{run} was created by `rollout run`, but only a launch can be resumed" in resumed.stderr
    assert "`rollout launch CONFIG`" in resumed.stderr
    resumed = run_cli("launch", "--resume", str(tmp_path))
    assert resumed.returncode == 2
    assert f"{tmp_path}: this is not the directory of a launch" in resumed.stderr


def test_a_launch_whose_workers_cannot_reach_the_queue_exits_with_2(color_codeword: str, tmp_path: Path) -> None:
    settings = set_options(("queue.url=memory://here", f"run.directory={tmp_path}"))
    result = run_cli("launch", color_codeword, *settings)
    assert result.returncode == 2
    assert "queue.url is memory://here, but workers are other processes" in result.stderr
