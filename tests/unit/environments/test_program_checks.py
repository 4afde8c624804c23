"""What is wrong with a program's settings is found before anything is played, and says which key to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.environments.program import Program
from rollout.environments.program_errors import ProgramMissing
from rollout.environments.program_settings import ProgramSettings

NOT_EXECUTABLE = "Run `chmod +x "
ONE_ITEM_EACH = "the first item is the program alone, and each argument is an item of its own"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of a YAML file, with a template and a few files beside it."""
    for name, mode in (("template/run.sh", 0o700), ("template/plain.sh", 0o600), ("my agent", 0o700), ("a.py", 0o600)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    return tmp_path


def check(directory: Path, settings: Mapping[str, Any]) -> str | None:
    given = {"score": "program", "config_dir": directory, **settings}
    return Program.check_machine(ProgramSettings.model_validate(given))


def refused(directory: Path, settings: Mapping[str, Any]) -> str:
    with pytest.raises(ProgramMissing) as raised:
        check(directory, settings)
    return str(raised.value)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["python {config_dir}/a.py {task.prompt}"], ONE_ITEM_EACH),
        (["sh -c true"], ONE_ITEM_EACH),
        (["/bin/sh -c true"], ONE_ITEM_EACH),
        (["no-such-agent"], "no directory of PATH has no-such-agent. Install it"),
        (["a.py"], "Write {config_dir}/a.py for the file beside the YAML file."),
        (["/no/such/agent"], "there is no file /no/such/agent. Correct the path"),
        (["{config_dir}/a.py"], NOT_EXECUTABLE),
        (["{config_dir}/template"], "is a directory"),
        (
            ["program/run.sh"],
            "a relative path begins at the work directory, and no template has program/run.sh. Write ",
        ),
        (["./a.py"], "Write {config_dir}/a.py for a file"),
        (["./plain.sh"], NOT_EXECUTABLE),
        (["{python}", "{config_dir}/b.py"], "which '{config_dir}/b.py' names"),
        (["sh", "-c", "{config_dir}/b.sh --all"], "/b.sh, which '{config_dir}/b.sh --all' names"),
    ],
)
def test_a_wrong_command_is_refused_with_its_key(directory: Path, command: list[str], problem: str) -> None:
    message = refused(directory, {"command": command, "template": "template"})
    assert message.startswith("environment.command: ")
    assert problem in message
    in_score = {"command": ["true"], "score": {"command": command, "template": "template"}}
    if command != ["program/run.sh"]:  # the program may write it
        message = refused(directory, in_score)
        assert message.startswith("environment.score.command: ")
        assert problem in message


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "true {task.prompt}"],
        ["{config_dir}/my agent", "{task.prompt}"],
        ["./run.sh"],
        ["{python}", "{config_dir}/a.py", "{config_dir}/{task.file}", "{workdir}/b.py"],
        ["sh", "-c", "{config_dir}/template/run.sh --all"],
        ["{task.program}"],
    ],
)
def test_a_good_command_is_found(directory: Path, command: list[str]) -> None:
    assert check(directory, {"command": command, "template": "template"})


def test_a_relative_path_in_a_template_of_the_task_is_not_checked(directory: Path) -> None:
    found = check(directory, {"command": ["./test"], "template": "{task.repository}"})
    assert "./test (not checked, because the template depends on the task)" in str(found)


def test_a_score_command_may_be_what_the_program_writes(directory: Path) -> None:
    assert check(directory, {"command": ["true"], "score": {"command": ["./built"]}})


def test_a_program_of_the_key_files_is_refused_because_it_is_not_executable(directory: Path) -> None:
    message = refused(directory, {"command": ["./go.sh"], "files": {"go.sh": "#!/bin/sh"}})
    assert message.startswith("environment.command: ./go.sh is written by environment.files, and such files are not ")


def test_a_file_of_path_that_is_not_executable_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(directory))
    assert f"{directory / 'a.py'} is not executable. {NOT_EXECUTABLE}" in refused(directory, {"command": ["a.py"]})


def test_a_wrong_executable_blames_its_key(directory: Path) -> None:
    message = refused(directory, {"agent": "codex", "executable": "/no/codex"})
    assert message == "environment.executable: there is no file /no/codex. Correct the path, or install the program."


def test_a_known_agent_that_is_missing_says_how_to_install_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(directory))
    message = refused(directory, {"agent": "codex"})
    assert message.startswith("environment.agent: no directory of PATH has codex. Install it: ")


def test_a_wrong_path_in_the_arguments_of_an_agent_is_refused(directory: Path) -> None:
    settings = {"agent": "codex", "executable": "{config_dir}/my agent", "arguments": ["{config_dir}/no.md"]}
    assert refused(directory, settings).startswith("environment.arguments: there is no file or directory ")


def test_a_program_is_not_searched_in_a_path_of_the_worker_if_it_gets_another_one(directory: Path) -> None:
    found = check(directory, {"command": ["my-tool"], "env": {"PATH": "{config_dir}/bin"}})
    assert "my-tool (not checked, because environment.env sets PATH)" in str(found)
