"""A launch remembers how it was begun, and a run's directory has one master."""

from pathlib import Path

import pytest

from rollout.config.source import ConfigFileError
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunAlreadyActive, RunDirectoryError, create_run_directory
from rollout.rundir.manifest import CannotResume, create_run, resume_run
from rollout.rundir.private_files import write_private_file


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def test_a_launch_is_resumed_as_it_was_begun(config: Path, tmp_path: Path) -> None:
    directory, created = create_run([config], [f"run.directory={tmp_path}", "tasks.count=3"])
    again, resumed = resume_run(directory.path, [])
    assert again == directory
    assert resumed == created
    assert resumed[0].config.tasks.count == 3


def test_anything_but_the_tasks_may_change(config: Path, tmp_path: Path) -> None:
    directory, _ = create_run([config], [f"run.directory={tmp_path}"])
    _, (launch_config,) = resume_run(directory.path, ["worker.concurrency=7"])
    assert launch_config.config.worker.concurrency == 7
    with pytest.raises(CannotResume, match="tasks changed after"):
        resume_run(directory.path, ["tasks.count=4"])
    with pytest.raises(CannotResume, match="environment changed after"):
        resume_run(directory.path, ["environment.image_size=64"])
    with pytest.raises(CannotResume, match=r"run\.name changed after"):
        resume_run(directory.path, ["run.name=other"])


def test_the_password_of_a_queue_stays_out_of_the_run_and_is_there_again_when_it_is_resumed(
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


def test_a_secret_in_a_variable_is_a_variable_again_in_every_file_of_the_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    overrides = [f"run.directory={tmp_path}", "model.name=${SECRET}", "queue.url=redis://me:${SECRET}@10.0.0.5/0"]
    directory, (created,) = create_run([config], overrides)
    files = [path for path in directory.path.iterdir() if path.is_file()]
    assert sorted(path.name for path in files) == ["color_codeword.yaml", "launch.json"]
    assert not [path for path in files if "s3cret" in path.read_text()]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.model.name == created.config.model.name == "s3cret"


def test_a_variable_that_is_missing_when_a_run_is_resumed_is_named(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    directory, _ = create_run([config], [f"run.directory={tmp_path}", "model.name=${SECRET}"])
    monkeypatch.delenv("SECRET")
    with pytest.raises(
        ConfigFileError, match=r"--set model\.name: model\.name: the environment variable SECRET is not"
    ):
        resume_run(directory.path, [])


def test_a_variable_of_the_tasks_with_another_value_makes_another_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNT", "3")
    directory, _ = create_run([config], [f"run.directory={tmp_path}", "tasks.count=${COUNT}"])
    monkeypatch.setenv("COUNT", "4")
    with pytest.raises(CannotResume, match="tasks changed after"):
        resume_run(directory.path, [])


def test_a_password_that_is_in_no_variable_is_left_out_of_the_kept_configuration(config: Path, tmp_path: Path) -> None:
    overrides = [f"run.directory={tmp_path}", "queue.url=redis://me:s3cret@10.0.0.5/0"]
    directory, (created,) = create_run([config], overrides)
    assert created.config.plain_passwords == ("--set queue.url: queue.url",)
    assert "url: redis://me@10.0.0.5/0" in (directory.path / "color_codeword.yaml").read_text()
    assert (directory.path / "launch.json").stat().st_mode & 0o777 == 0o600
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.queue.url == "redis://me:s3cret@10.0.0.5/0"


def test_a_file_for_its_owner_replaces_one_that_others_could_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o644)
    write_private_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_no_launch_was_begun_none_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(CannotResume, match="not the directory of a launch"):
        resume_run(tmp_path, [])


@pytest.mark.parametrize("content", [b"", b"\xff", b"[", b"{}", b"[1]", b'[{"file": 1}]', b"[" * 100_000])
def test_a_run_whose_manifest_is_damaged_is_not_resumed(config: Path, tmp_path: Path, content: bytes) -> None:
    directory, _ = create_run([config], [f"run.directory={tmp_path}"])
    (directory.path / "launch.json").write_bytes(content)
    with pytest.raises(CannotResume, match=r"launch\.json cannot be read: it is not a file that"):
        resume_run(directory.path, [])


@pytest.mark.parametrize("name", ["..", ".hidden"])
def test_no_run_has_a_name_that_leads_elsewhere(config: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigFileError, match=r"run\.name"):
        create_run([config], [f"run.directory={tmp_path}", f"run.name={name}"])


def test_two_environments_of_one_name_are_refused(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"two configurations have the run\.name 'color_codeword'"):
        create_run([config, config], [f"run.directory={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_a_bad_configuration_makes_no_directory(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError):
        create_run([config], [f"run.directory={tmp_path}", "tasks.count=none"])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_has_one_master(tmp_path: Path) -> None:
    directory = create_run_directory(tmp_path, "run")
    with directory.lock():
        with pytest.raises(RunAlreadyActive, match="works in this directory"), directory.lock():
            raise AssertionError
    with directory.lock():
        pass


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be created: Not a directory"):
        create_run_directory(tmp_path / "file", "run")
