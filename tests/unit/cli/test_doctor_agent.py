"""`rollout doctor --agent`: its output and its exit codes."""

from pathlib import Path

from tests.unit.cli.in_process import run_cli


def test_an_agent_that_can_be_trained_ends_the_report_with_yes(repository: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    config = str(repository / "configs" / "program.yaml")
    result = run_cli("doctor", config, "--agent", "--set", f"run.directory={runs}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "ok  agent  yes: this agent can be trained"
    plays = [line for line in result.stderr.splitlines() if line.startswith("rollout: play ")]
    assert len(plays) == 5
    assert plays[0] == "rollout: play 1 of 5: a normal rollout"
    assert not runs.exists()


def test_an_environment_without_a_program_is_no(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "configs" / "color_codeword.yaml")
    result = run_cli("doctor", config, "--agent", "--set", f"run.directory={tmp_path / 'runs'}")
    assert result.returncode == 1
    last = result.stdout.splitlines()[-1]
    assert last == "bad  agent  no: start: the environment opens no endpoint, so it plays no program"


def test_a_bad_configuration_plays_nothing(repository: Path) -> None:
    config = str(repository / "configs" / "color_codeword.yaml")
    result = run_cli("doctor", config, "--agent", "--set", "queue.url=file://{run_dir}/t?high_water=80KB")
    assert result.returncode == 2
    assert "?  agent  not checked: first correct the errors above" in result.stdout
    assert "play 1" not in result.stderr
