"""A launch is resumed with its settings, and only one process launches in the directory of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.config.source import ConfigFileError
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunAlreadyActive, RunDirectory, RunDirectoryError, create_run_directory
from rollout.rundir.manifest import CannotResume, LaunchConfig, create_run, resume_run
from rollout.rundir.private_files import write_private_file

CreateRun = Callable[..., tuple[RunDirectory, list[LaunchConfig]]]


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


@pytest.fixture
def create(config: Path, tmp_path: Path) -> CreateRun:
    """Return a function that creates a run of one configuration, with the given overrides."""
    return lambda *overrides: create_run([config], [f"run.directory={tmp_path}", *overrides])


def test_a_launch_is_resumed_with_its_settings(create: CreateRun) -> None:
    directory, created = create("tasks.count=3")
    again, resumed = resume_run(directory.path, [])
    assert again == directory
    assert resumed == created
    assert resumed[0].config.tasks.count == 3


def test_only_tasks_environment_and_name_of_a_resumed_run_cannot_change(create: CreateRun) -> None:
    directory, _ = create()
    _, (launch_config,) = resume_run(directory.path, ["worker.concurrency=7"])
    assert launch_config.config.worker.concurrency == 7
    with pytest.raises(CannotResume, match="tasks changed after"):
        resume_run(directory.path, ["tasks.count=4"])
    with pytest.raises(CannotResume, match="environment changed after"):
        resume_run(directory.path, ["environment.image_size=64"])
    with pytest.raises(CannotResume, match=r"run\.name changed after"):
        resume_run(directory.path, ["run.name=other"])


def test_a_resumed_run_has_the_password_of_a_queue_that_no_file_contains(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    (tmp_path / "mine.yaml").write_text(
        f"{config.read_text()}\nqueue: {{url: 'redis://me:${{QUEUE_PASSWORD}}@10.0.0.5/0'}}\n"
    )
    directory, (created,) = create_run([tmp_path / "mine.yaml"], [f"run.directory={tmp_path}"])
    assert not [path for path in directory.path.iterdir() if path.is_file() and "s3cret" in path.read_text()]
    assert "url: 'redis://me:${QUEUE_PASSWORD}@10.0.0.5/0'" in (directory.path / "color_codeword.yaml").read_text()
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.queue.url == created.config.queue.url == "redis://me:s3cret@10.0.0.5/0"


def test_every_file_of_a_run_has_the_variable_and_not_its_secret(
    create: CreateRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    directory, (created,) = create("model.name=${SECRET}", "queue.url=redis://me:${SECRET}@10.0.0.5/0")
    files = [path for path in directory.path.iterdir() if path.is_file()]
    assert sorted(path.name for path in files) == ["color_codeword.yaml", "launch.json"]
    assert not [path for path in files if "s3cret" in path.read_text()]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.model.name == created.config.model.name == "s3cret"


def test_a_variable_that_is_missing_at_a_resume_is_named(create: CreateRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    directory, _ = create("model.name=${SECRET}")
    monkeypatch.delenv("SECRET")
    with pytest.raises(
        ConfigFileError, match=r"--set model\.name: model\.name: the environment variable SECRET is not"
    ):
        resume_run(directory.path, [])


def test_a_run_is_not_resumed_if_a_variable_of_its_tasks_changed(
    create: CreateRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNT", "3")
    directory, _ = create("tasks.count=${COUNT}")
    monkeypatch.setenv("COUNT", "4")
    with pytest.raises(CannotResume, match="tasks changed after"):
        resume_run(directory.path, [])


def test_the_saved_configuration_lacks_a_password_that_is_not_in_a_variable(create: CreateRun) -> None:
    directory, (created,) = create("queue.url=redis://me:s3cret@10.0.0.5/0")
    assert created.config.plain_passwords == ("--set queue.url: queue.url",)
    assert "url: redis://me@10.0.0.5/0" in (directory.path / "color_codeword.yaml").read_text()
    assert (directory.path / "launch.json").stat().st_mode & 0o777 == 0o600
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.queue.url == "redis://me:s3cret@10.0.0.5/0"


def test_a_private_file_replaces_a_file_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o644)
    write_private_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_a_launch_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(CannotResume, match="not the directory of a launch"):
        resume_run(tmp_path, [])


@pytest.mark.parametrize("content", [b"", b"\xff", b"[", b"{}", b"[1]", b'[{"file": 1}]', b"[" * 100_000])
def test_a_run_whose_manifest_is_damaged_is_not_resumed(create: CreateRun, content: bytes) -> None:
    directory, _ = create()
    (directory.path / "launch.json").write_bytes(content)
    with pytest.raises(CannotResume, match=r"launch\.json cannot be read: it is not a file that"):
        resume_run(directory.path, [])


@pytest.mark.parametrize("name", ["..", ".hidden"])
def test_a_name_of_a_run_that_is_not_a_plain_directory_is_refused(create: CreateRun, name: str) -> None:
    with pytest.raises(ConfigFileError, match=r"run\.name"):
        create(f"run.name={name}")


def test_two_environments_with_the_same_name_are_refused(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"two configurations have the run\.name 'color_codeword'"):
        create_run([config, config], [f"run.directory={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_creates_no_directory(create: CreateRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError):
        create("tasks.count=none")
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_can_lock_a_directory(tmp_path: Path) -> None:
    directory = create_run_directory(tmp_path, "run")
    with directory.lock():
        with pytest.raises(RunAlreadyActive, match="works in this directory"), directory.lock():
            raise AssertionError
    with directory.lock():
        pass


def test_a_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be created: Not a directory"):
        create_run_directory(tmp_path / "file", "run")
