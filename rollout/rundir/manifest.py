"""The configurations that a launch started with, written into the run's directory, so that it can be continued."""

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


@dataclass(frozen=True, slots=True)
class _ManifestEntry:
    """What a launch writes down of one configuration.

    Attributes:
        file: the absolute path of the YAML file.
        overrides: the texts of `--set`, in which variables are not replaced.
        environment: the name of the environment, `run.name`.
        digests: of each section that says which rollouts there are.
    """

    file: str
    overrides: tuple[str, ...]
    environment: str
    digests: dict[str, str]


_MANIFEST = TypeAdapter(list[_ManifestEntry])


def create_run(
    files: Sequence[Path], overrides: Sequence[str], run_path: Path | None = None
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Start a new run of these configurations, in the directory `run_path`, or else in a new one.

    Raises:
        EnvironmentUnusable: an environment cannot be made; there is no run then.
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
        write_private_file(directory.path / _MANIFEST_NAME, manifest)  # last and at once: now the run can be continued
    except OSError as error:
        raise RunDirectoryError(f"{directory.path / _MANIFEST_NAME} cannot be written: {error.strerror}.") from None
    return directory, launch_configs


def load_launch_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[LaunchConfig]:
    """Load the launch configurations of one run.

    Raises:
        ConfigFileError: one of them is not usable.
        ConfigurationError: two have the same name.
    """
    launch_configs = [
        LaunchConfig(resolve_path(file), tuple(overrides), load_config(file, overrides)) for file in files
    ]
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
        EnvironmentUnusable: an environment cannot be made.
    """
    directory = RunDirectory(resolve_path(path))
    if not can_resume(path):
        raise CannotResume(_why_not_a_launch(path))
    try:
        entries = _MANIFEST.validate_json((path / _MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not what a launch writes"
        raise CannotResume(f"{path / _MANIFEST_NAME} cannot be read: {reason}. Begin a new run.") from None
    recorded_files, given_files = [entry.file for entry in entries], [str(resolve_path(file)) for file in files]
    if given_files and given_files != recorded_files:
        raise CannotResume(
            f"{path}: this run was begun with {', '.join(recorded_files)}, not with {', '.join(given_files)}."
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
        return f"{path}: there is no such directory. Give the directory of a run that `rollout launch` began."
    if (path / RUN_CONFIG_NAME).exists():
        return (
            f"{path} was made by `rollout run`, and only a launch can be resumed. Begin one with "
            "`rollout launch CONFIG`, or play all again with `rollout run CONFIG`."
        )
    return (
        f"{path}: no launch was begun here, for there is no {_MANIFEST_NAME}. Give the directory of a run that "
        "`rollout launch` began."
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
            f"{launch_config.file}: {' and '.join(changed)} changed since the run in {path} was begun, so that its "
            "rollouts would be others. Begin a new run, or undo the change."
        )
