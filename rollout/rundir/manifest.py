"""The configurations of a launch, saved in the run's directory, so that the launch can be resumed."""

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
"""The sections that define the rollouts of a run; they must not change."""


class CannotResume(ConfigurationError):
    """There is no launch in this directory, or its tasks have changed."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The configuration of one environment of a launch. Each worker reads it again from the file and the overrides.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the `KEY=VALUE` texts that change keys of the file.
        config: the checked configuration that results.
    """

    file: Path
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True, slots=True)
class _ManifestEntry:
    """What a launch saves about one configuration.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the texts of `--set`, with variables that are not replaced.
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
    """Make the directory of a new run of these configurations: `run_path`, or a directory with a new name.

    Raises:
        EnvironmentUnusable: an environment cannot be made; then no directory is made.
    """
    launch_configs = load_launch_configs(files, overrides)
    for launch_config in launch_configs:
        _require_usable(launch_config.config)
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
        write_private_file(
            directory.path / _MANIFEST_NAME, manifest
        )  # last, because from now on the run can be resumed
    except OSError as error:
        raise RunDirectoryError(f"{directory.path / _MANIFEST_NAME} cannot be written: {error.strerror}.") from None
    return directory, launch_configs


def load_launch_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[LaunchConfig]:
    """Load the launch configurations of one run.

    Raises:
        ConfigFileError: a configuration is not usable.
        ConfigurationError: two have the same name.
    """
    launch_configs = [
        LaunchConfig(resolve_path(file), tuple(overrides), load_config(file, overrides)) for file in files
    ]
    names = [launch_config.config.run.name for launch_config in launch_configs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ConfigurationError(
            f"two configurations have the run.name {duplicate!r}; give each environment its own run.name."
        )
    return launch_configs


def can_resume(path: Path) -> bool:
    """Whether this directory has a launch that can be resumed."""
    return (path / _MANIFEST_NAME).exists()


def resume_run(
    path: Path, overrides: Sequence[str], files: Sequence[Path] = ()
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Load the run in a directory again. Additional overrides may change everything except its tasks.

    Args:
        path: the directory of the run.
        overrides: `KEY=VALUE` texts, which are applied after those of the run's start.
        files: if not empty, the files with which the run must have started.

    Raises:
        CannotResume: there is no launch, its tasks have changed, or it started with other files.
        EnvironmentUnusable: an environment cannot be made.
    """
    directory = RunDirectory(resolve_path(path))
    if not can_resume(path):
        raise CannotResume(_why_not_a_launch(path))
    try:
        entries = _MANIFEST.validate_json((path / _MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no launch wrote this file"
        raise CannotResume(f"{path / _MANIFEST_NAME} cannot be read: {reason}. Start a new run.") from None
    recorded_files, given_files = [entry.file for entry in entries], [str(resolve_path(file)) for file in files]
    if given_files and given_files != recorded_files:
        raise CannotResume(
            f"{path}: this run was started with {', '.join(recorded_files)}, not with {', '.join(given_files)}."
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
    if not path.is_dir():
        return f"{path}: there is no such directory. Give the directory of a run that `rollout launch` started."
    if (path / RUN_CONFIG_NAME).exists():
        return (
            f"{path} was made by `rollout run`, and only a launch can be resumed. Start a launch with "
            "`rollout launch CONFIG`, or play everything again with `rollout run CONFIG`."
        )
    return (
        f"{path}: no launch was started here, because there is no {_MANIFEST_NAME}. Give the directory of a run that "
        "`rollout launch` started."
    )


def _require_usable(config: Config) -> None:
    require_usable(config.new_environment, config.environment_class_path)


def _entry(launch_config: LaunchConfig) -> _ManifestEntry:
    config = launch_config.config
    digests = {section: config.section_digest(section) for section in _FIXED_SECTIONS}
    return _ManifestEntry(str(launch_config.file), launch_config.overrides, config.run.name, digests)


def _require_same_tasks(launch_config: LaunchConfig, recorded: _ManifestEntry, path: Path) -> None:
    current = _entry(launch_config)
    changed = [section for section in _FIXED_SECTIONS if current.digests[section] != recorded.digests.get(section)]
    if current.environment != recorded.environment:
        changed.append("run.name")
    if changed:
        raise CannotResume(
            f"{launch_config.file}: {' and '.join(changed)} changed since the run in {path} started, and so would "
            "its rollouts. Start a new run, or undo the change."
        )
