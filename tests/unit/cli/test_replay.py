"""`rollout replay`: its output and its exit codes."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli, set_options
from tests.unit.testing import games
from tests.unit.testing.recorded import ROLLOUT, WORDS, record, write_config


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    asyncio.run(record(directory, games.Game(games.GameSettings()), WORDS))
    return directory


def test_a_replay_without_differences_exits_with_0(run_directory: Path) -> None:
    write_config(run_directory, games.Game)
    replayed = run_cli("replay", str(run_directory), ROLLOUT)
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert replayed.stdout == f"{run_directory.name}/game/task.0: the same as recorded; 3 of 3 turns are the same\n"


def test_a_replay_with_a_difference_shows_it_and_exits_with_1(run_directory: Path) -> None:
    write_config(run_directory, games.OtherHint)
    replayed = run_cli("replay", str(run_directory), ROLLOUT)
    assert (replayed.returncode, replayed.stderr) == (1, "")
    first, second, *diff = replayed.stdout.splitlines()
    assert first.endswith("/game/task.0: different; 2 of 3 turns are the same")
    assert second == "turn 2: messages[5] is different"
    assert diff[-1] == "    +Line two."


def test_json_has_the_whole_report(run_directory: Path) -> None:
    write_config(run_directory, games.OtherScore)
    replayed = run_cli("replay", str(run_directory), ROLLOUT, "--json")
    assert replayed.returncode == 1
    report = json.loads(replayed.stdout)
    assert report["run_dir"] == str(run_directory)
    assert (report["same"], report["recorded_turns"], report["same_turns"], report["notes"]) == (False, 3, 3, [])
    assert report["differences"][0] == {
        "what": "score",
        "turn": None,
        "text": "reward: 1; recorded is 3.5",
        "details": [],
    }


@pytest.mark.parametrize(
    ("rollout", "options", "complaint"),
    [("z.9", (), "has no rollout 'z.9'"), (ROLLOUT, ("--config", "missing.yaml"), "missing.yaml: cannot be read")],
)
def test_a_rollout_that_cannot_be_replayed_exits_with_2(
    run_directory: Path, rollout: str, options: tuple[str, ...], complaint: str
) -> None:
    write_config(run_directory, games.Game)
    replayed = run_cli("replay", str(run_directory), rollout, *options)
    assert (replayed.returncode, replayed.stdout) == (2, "")
    assert complaint in replayed.stderr


def test_a_rollout_of_rollout_run_is_replayed(repository: Path, tmp_path: Path) -> None:
    options = set_options("tasks.count=1", "tasks.group_size=1", f"run.directory={tmp_path}")
    ran = run_cli("run", str(repository / "configs" / "calculator.yaml"), *options, "--json")
    assert ran.returncode == 0, ran.stderr
    replayed = run_cli("replay", str(tmp_path), "000000.0")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
