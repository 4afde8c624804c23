"""Saves the configurations of a launch in the run's directory, so that the launch can be resumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from rollout.config.environment_class import require_usable
from rollout.config.load import Config, load_config
from rollout.errors import ConfigurationError
from rollout.paths import resolve_path
from rollout.rundir.directory import RUN_CONFIG_NAME, RunDirectory, RunDirectoryError, create_run_directory
from rollout.rundir.private_files import write_private_file

_MANIFEST_NAME = "launch.json"
_FIXED_SECTIONS = ("environment", "tasks")
"""The sections that define the rollouts of a run; they must not change when the run is resumed."""


class CannotResume(ConfigurationError):
    """The directory does not contain a launch, or the launch started with other files or other tasks."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The configuration of one environment of a launch. Each worker loads it again from the file and the overrides.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the `KEY=VALUE` strings that change keys of the file.
        config: the checked configuration, after the overrides.
    """

    file: Path
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True, slots=True)
class _ManifestEntry:
    """The data that a launch saves about one configuration.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the `KEY=VALUE` strings of `--set`; environment variables in them are not replaced.
        environment: the name of the environment, `run.name`.
        digests: a hash of each section that defines the rollouts.
    """

    file: str
    overrides: tuple[str, ...]
    environment: str
    digests: dict[str, str]


_MANIFEST = TypeAdapter(list[_ManifestEntry])


def create_run(
    files: Sequence[Path], overrides: Sequence[str], run_path: Path | None = None
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Create the directory of a new run: `run_path`, or a directory with a new name. Return it and its configurations.

    Raises:
        EnvironmentUnusable: an environment cannot be created. Then the directory is not created either.
    """
    launch_configs = load_usable_configs(files, overrides)
    return save_run(launch_configs, run_path), launch_configs


def save_run(launch_configs: Sequence[LaunchConfig], run_path: Path | None) -> RunDirectory:
    """Create the directory of a new run of these configurations: `run_path`, or a directory with a new name.

    Raises:
        RunDirectoryError: the directory or a file in it cannot be written.
    """
    if run_path is None:
        name = "-".join(launch_config.config.run.name for launch_config in launch_configs)
        directory = create_run_directory(launch_configs[0].config.run.directory, name[:80])
    else:
        directory = RunDirectory(resolve_path(run_path))
        directory.create()
    for launch_config in launch_configs:
        directory.save_config(launch_config.config, f"{launch_config.config.run.name}.yaml")
    manifest = orjson.dumps([_entry(launch_config) for launch_config in launch_configs], option=orjson.OPT_INDENT_2)
    try:
        # This file is written last, because the run can be resumed when it exists.
        write_private_file(directory.path / _MANIFEST_NAME, manifest)
    except OSError as error:
        raise RunDirectoryError(f"{directory.path / _MANIFEST_NAME} cannot be written: {error.strerror}.") from None
    return directory


def load_usable_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[LaunchConfig]:
    """Load the launch configurations of one run, and create one instance of each environment.

    Raises:
        ConfigFileError: a configuration is not valid.
        ConfigurationError: two configurations have the same `run.name`.
        EnvironmentUnusable: an environment cannot be created.
    """
    launch_configs = load_launch_configs(files, overrides)
    for launch_config in launch_configs:
        _require_usable(launch_config.config)
    return launch_configs


def load_launch_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[LaunchConfig]:
    """Load the launch configurations of one run.

    Raises:
        ConfigFileError: a configuration is not valid.
        ConfigurationError: two configurations have the same `run.name`.
    """
    launch_configs = [
        LaunchConfig(resolve_path(file), tuple(overrides), load_config(file, overrides)) for file in files
    ]
    names = [launch_config.config.run.name for launch_config in launch_configs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ConfigurationError(
            f"two configurations have the run.name {duplicate!r}. Set a different run.name in each configuration."
        )
    return launch_configs


def can_resume(path: Path) -> bool:
    """Whether this directory contains a launch that can be resumed."""
    return (path / _MANIFEST_NAME).exists()


def resume_run(
    path: Path, overrides: Sequence[str], files: Sequence[Path] = ()
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Load the configurations of an existing run. New overrides may change everything except the tasks.

    Args:
        path: the directory of the run.
        overrides: the new `KEY=VALUE` strings; they are applied after the overrides with which the run started.
        files: the files with which the run must have started; if there are none, this is not checked.

    Raises:
        CannotResume: there is no launch, its tasks have changed, or it started with other files.
        EnvironmentUnusable: an environment cannot be created.
    """
    directory = RunDirectory(resolve_path(path))
    if not can_resume(path):
        raise CannotResume(_why_not_a_launch(path))
    try:
        entries = _MANIFEST.validate_json((path / _MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a file that `rollout launch` wrote"
        raise CannotResume(f"{path / _MANIFEST_NAME} cannot be read: {reason}. Start a new run.") from None
    recorded_files, given_files = [entry.file for entry in entries], [str(resolve_path(file)) for file in files]
    if given_files and given_files != recorded_files:
        raise CannotResume(
            f"{path}: this run was started with {', '.join(recorded_files)}, not with {', '.join(given_files)}. "
            "Use the same files, or start a new run."
        )
    launch_configs = []
    for entry in entries:
        all_overrides = (*entry.overrides, *overrides)
        launch_config = LaunchConfig(Path(entry.file), all_overrides, load_config(Path(entry.file), all_overrides))
        _require_same_tasks(launch_config, entry, path)
        _require_usable(launch_config.config)
        launch_configs.append(launch_config)
    return directory, launch_configs


def _why_not_a_launch(path: Path) -> str:
    """Return the error for a directory that has no launch."""
    if not path.is_dir():
        return f"{path}: this directory does not exist. Use the directory of a run that `rollout launch` started."
    if (path / RUN_CONFIG_NAME).exists():
        return (
            f"{path} was created by `rollout run`, but only a launch can be resumed. Start a launch with "
            "`rollout launch CONFIG`, or play all rollouts again with `rollout run CONFIG`."
        )
    return (
        f"{path}: this is not the directory of a launch, because it has no {_MANIFEST_NAME}. Use the directory of a "
        "run that `rollout launch` started."
    )


def _require_usable(config: Config) -> None:
    require_usable(config.new_environment, config.environment_class_path)


def _entry(launch_config: LaunchConfig) -> _ManifestEntry:
    config = launch_config.config
    digests = {section: config.section_digest(section) for section in _FIXED_SECTIONS}
    return _ManifestEntry(str(launch_config.file), launch_config.overrides, config.run.name, digests)


def _require_same_tasks(launch_config: LaunchConfig, recorded: _ManifestEntry, path: Path) -> None:
    """Raise CannotResume if the configuration now defines other rollouts than when the run started."""
    current = _entry(launch_config)
    changed = [section for section in _FIXED_SECTIONS if current.digests[section] != recorded.digests.get(section)]
    if current.environment != recorded.environment:
        changed.append("run.name")
    if changed:
        raise CannotResume(
            f"{launch_config.file}: {' and '.join(changed)} changed after the run in {path} started, so its rollouts "
            "would be different. Undo the change, or start a new run."
        )
