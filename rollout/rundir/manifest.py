"""The configurations that a launch started with, written into the run's directory, so that it can be continued."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from rollout.config.load import Config, load_config
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunDirectory, RunDirectoryError, create_run_directory

_MANIFEST_NAME = "launch.json"
_FIXED_SECTIONS = ("environment", "tasks")
"""The sections that say which rollouts there are."""


class CannotResume(ConfigurationError):
    """There is no launch in this directory, or it started with other tasks."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """One launch configuration; every worker reads it again from the file and the overrides.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the `KEY=VALUE` texts that change keys of the file.
        config: the checked configuration that results.
    """

    file: Path
    overrides: tuple[str, ...]
    config: Config


def create_run(
    files: Sequence[Path], overrides: Sequence[str], run_path: Path | None = None
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Start a new run of these configurations, in the directory `run_path`, or else in a new one."""
    launch_configs = load_launch_configs(files, overrides)
    if run_path is None:
        name = "-".join(launch_config.config.run.name for launch_config in launch_configs)
        directory = create_run_directory(launch_configs[0].config.run.directory, name[:80])
    else:
        directory = RunDirectory(run_path.resolve())
        directory.create()
    for launch_config in launch_configs:
        directory.save_config(launch_config.config, f"{launch_config.config.run.name}.yaml")
    entries = [
        {"file": str(item.file), "overrides": item.overrides, "environment": item.config.run.name}
        for item in launch_configs
    ]
    draft_path = directory.path / f"{_MANIFEST_NAME}.draft"
    try:
        draft_path.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
        draft_path.rename(directory.path / _MANIFEST_NAME)  # last and at once: now the run can be continued
    except OSError as error:
        raise RunDirectoryError(f"{directory.path / _MANIFEST_NAME} cannot be written: {error.strerror}.") from None
    return directory, launch_configs


def load_launch_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[LaunchConfig]:
    """Load the launch configurations of one run.

    Raises:
        ConfigFileError: one of them is not usable.
        ConfigurationError: two have the same name.
    """
    launch_configs = [LaunchConfig(file.resolve(), tuple(overrides), load_config(file, overrides)) for file in files]
    names = [launch_config.config.run.name for launch_config in launch_configs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ConfigurationError(
            f"two configurations have the run.name {duplicate!r}; their rollouts would be mixed up."
        )
    return launch_configs


def can_resume(path: Path) -> bool:
    """Whether there is a run in this directory that can be continued."""
    return (path / _MANIFEST_NAME).exists()


def resume_run(
    path: Path, overrides: Sequence[str], files: Sequence[Path] = ()
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Return the run in a directory, to be continued. More overrides may change anything but its tasks.

    Raises:
        CannotResume: there is no run, its tasks changed, or it started with other files than those given.
    """
    directory = RunDirectory(path.resolve())
    try:
        entries: list[dict[str, Any]] = orjson.loads((path / _MANIFEST_NAME).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CannotResume(f"{path}: no launch was begun here ({_MANIFEST_NAME}: {error}).") from None
    recorded_files, given_files = [entry["file"] for entry in entries], [str(file.resolve()) for file in files]
    if given_files and given_files != recorded_files:
        raise CannotResume(
            f"{path}: this run was begun with {', '.join(recorded_files)}, not with {', '.join(given_files)}."
        )
    launch_configs = []
    for entry in entries:
        all_overrides = (*entry["overrides"], *overrides)
        launch_config = LaunchConfig(
            Path(entry["file"]), all_overrides, load_config(Path(entry["file"]), all_overrides)
        )
        _require_same_tasks(launch_config, _load_recorded_config(path / f"{entry['environment']}.yaml"), path)
        launch_configs.append(launch_config)
    return directory, launch_configs


def _load_recorded_config(file: Path) -> dict[str, Any]:
    try:
        recorded: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CannotResume(f"{file}: what the run was begun with cannot be read: {error}. Begin a new run.") from None
    return recorded


def _require_same_tasks(launch_config: LaunchConfig, recorded: dict[str, Any], path: Path) -> None:
    current = yaml.safe_load(yaml.safe_dump(launch_config.config.to_dict()))
    changed = [section for section in _FIXED_SECTIONS if current[section] != recorded[section]]
    if current["run"]["name"] != recorded["run"]["name"]:
        changed.append("run.name")
    if changed:
        raise CannotResume(
            f"{launch_config.file}: {' and '.join(changed)} changed since the run in {path} was begun, so that its "
            "rollouts would be others. Begin a new run, or undo the change."
        )
