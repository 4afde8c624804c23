"""`rollout init`: the environment that it writes runs, and an error leaves no file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli

TEMPLATES = ("chat", "images", "tools", "agent", "gym")


@pytest.fixture(params=TEMPLATES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write an environment with a name that no other test uses; return its YAML."""
    name = f"env-{tmp_path.name}"
    result = run_cli("init", str(tmp_path / name), "--template", request.param)
    assert result.returncode == 0, result.stderr
    return tmp_path / name / f"env_{tmp_path.name.lower()}.yaml"


def run_python(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)


def test_the_written_environment_passes_doctor_and_runs(written: Path) -> None:
    checked = run_cli("doctor", str(written))
    assert checked.returncode == 0, checked.stdout
    played = run_cli("run", str(written), "--json", "--set", "engine.sampling.temperature=0")
    assert played.returncode == 0, played.stderr
    report = json.loads(played.stdout)
    assert report["reward_mean"] == 1.0
    assert report["trainer"]["violations"] == 0
    assert Path(report["run_dir"]).parent == written.parent / "runs"


def test_the_written_environment_gives_different_rewards(written: Path) -> None:
    report = json.loads(run_cli("run", str(written), "--json", "--set", "engine.sampling.seed=0").stdout)
    assert 0.5 < report["reward_mean"] < 1.0


@pytest.mark.parametrize("written", ["chat"], indirect=True)
def test_workers_play_the_written_environment(written: Path) -> None:
    result = run_python(
        *("-m", "rollout", "launch", written.name, "--workers", "2", "--set", "tasks.count=2", "--json"),
        directory=written.parent,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == {"ok": 8}


def test_the_written_tests_pass(tmp_path: Path) -> None:
    for template in TEMPLATES:
        assert run_cli("init", str(tmp_path / f"of-{template}"), "--template", template).returncode == 0
    result = run_python("-m", "pytest", "-p", "no:asyncio", directory=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "10 passed" in result.stdout


def test_the_written_code_is_clean(written: Path) -> None:
    rules = "E,F,W,I,UP,B,C4,SIM,RUF,PT,ANN,N"
    checked = run_python("-m", "ruff", "check", "--isolated", "--select", rules, directory=written.parent)
    assert checked.returncode == 0, checked.stdout
    formatted = run_python("-m", "ruff", "format", "--check", "--isolated", directory=written.parent)
    assert formatted.returncode == 0, formatted.stdout


def test_init_prints_the_written_files_and_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("init", "my-guess")
    assert sorted(path.name for path in (tmp_path / "my-guess").iterdir()) == [
        *("my_guess.py", "my_guess.yaml", "my_guess_policy.py", "test_my_guess.py")
    ]
    for line in ("wrote my-guess/", "  cd my-guess", "  rollout run my_guess.yaml "):
        assert f"\n{line}" in f"\n{result.stdout}"
    assert "templates" not in "".join(path.read_text() for path in (tmp_path / "my-guess").iterdir())


def test_init_prints_how_to_install_gymnasium_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    next_commands = run_cli("init", "lake", "--template", "gym").stdout.partition("next:")[2]
    assert "pip install" not in next_commands.partition("pytest")[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert '  pip install "rollout-rl[gym]"  installs gymnasium' in run_cli("init", "pond", "--template", "gym").stdout


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("json", r"'json' is already the name of a module"),
        ("Transports", r"'transports' is already the name of a module"),
        ("class", "'class' is a keyword of Python"),
        ("my env", "Begin with a letter; use only letters, digits, - and _"),
        ("7up", "Begin with a letter"),
        ("..", "Begin with a letter"),
        ("nowhere/guess", "there is no directory nowhere. Create it first"),
        ("taken", "taken already exists, and is not changed"),
        ("n" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    result = run_cli("init", name)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "taken"]


def test_no_file_is_left_if_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    result = run_cli("init", str(tmp_path / "guess"))
    assert result.returncode == 2
    assert "guess cannot be written: No space left on device." in result.stderr
    assert list(tmp_path.iterdir()) == []
