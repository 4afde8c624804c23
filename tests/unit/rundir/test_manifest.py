"""A launch remembers how it was begun, and a run's directory has one master."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.config.source import ConfigFileError
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunAlreadyActive, RunDirectory, RunDirectoryError, create_run_directory
from rollout.rundir.manifest import CannotResume, create_run, resume_run


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
    with pytest.raises(CannotResume, match="tasks changed since"):
        resume_run(directory.path, ["tasks.count=4"])
    with pytest.raises(CannotResume, match="environment changed since"):
        resume_run(directory.path, ["environment.image_size=64"])
    with pytest.raises(CannotResume, match=r"run\.name changed since"):
        resume_run(directory.path, ["run.name=other"])


def test_the_password_of_a_queue_stays_out_of_the_run_and_is_there_again_when_it_is_resumed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    config_text = config.read_text().replace("../", f"{config.parent.parent}/")
    (tmp_path / "mine.yaml").write_text(f"{config_text}\nqueue: {{url: 'redis://me:${{QUEUE_PASSWORD}}@10.0.0.5/0'}}\n")
    directory, (created,) = create_run([tmp_path / "mine.yaml"], [f"run.directory={tmp_path}"])
    assert not [path for path in directory.path.iterdir() if path.is_file() and "s3cret" in path.read_text()]
    assert "redis://me@10.0.0.5/0" in (directory.path / "color_codeword.yaml").read_text()
    _, (resumed,) = resume_run(directory.path, [])
    assert resumed.config.queue.url == created.config.queue.url == "redis://me:s3cret@10.0.0.5/0"


def test_where_no_launch_was_begun_none_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(CannotResume, match="no launch was begun here"):
        resume_run(tmp_path, [])


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(b"\xff"), lambda file: file.write_text("[")]
)
def test_a_run_whose_kept_configuration_is_lost_is_not_resumed(
    config: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    directory, _ = create_run([config], [f"run.directory={tmp_path}"])
    damage(directory.path / "color_codeword.yaml")
    with pytest.raises(CannotResume, match=r"color_codeword\.yaml: what the run was begun with cannot be read"):
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
        with pytest.raises(RunAlreadyActive, match="another process runs here"), directory.lock():
            raise AssertionError
    with directory.lock():
        pass


def test_urls_name_the_run_and_the_environment(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a run")
    queue_url = directory.queue_url("file://{run_dir}/tasks/{environment}?fsync=never", "colors")
    assert queue_url == f"file://{tmp_path}/a%20run/tasks/colors?fsync=never"


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be made: Not a directory"):
        create_run_directory(tmp_path / "file", "run")
