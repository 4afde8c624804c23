"""Loads the configuration of a replay, which the run saved or the user names."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rollout.config.load import Config, load_config
from rollout.config.source import ConfigFileError, read_document
from rollout.errors import ConfigurationError
from rollout.import_path import search_last
from rollout.rundir.directory import RUN_CONFIG_NAME


class CannotReplay(ConfigurationError):
    """A rollout cannot be replayed: records or its configuration are missing, or its environment cannot be played."""


def load_replay_config(directory: Path, environment: str, file: Path | None) -> tuple[Config, list[str]]:
    """Return the configuration of the environment, and notes about it for the report.

    Args:
        directory: the run's directory.
        environment: the name of the environment in the run.
        file: the YAML file to use; None means the one that the run saved.

    Raises:
        CannotReplay: the run saved no configuration of this environment.
        ConfigFileError: the environment cannot be imported, or its settings are no longer valid.
    """
    # By default, a run's directory is in `runs`, and the environment's modules are beside `runs`.
    search_last(str(directory.parent.parent))
    if file is None:
        return _load_recorded(directory, environment), []
    config = load_config(file)
    return config, list(_describe_other_environment(config, directory, environment))


def _load_recorded(directory: Path, environment: str) -> Config:
    try:
        for file in _recorded_files(directory, environment):
            if (config := load_config(file)).run.name == environment:
                return config
    except ConfigFileError as error:
        raise ConfigFileError(
            f"{error}\nThe run saved this file at its start; do not change it. If a module or a key was moved or "
            "renamed since then, give today's YAML with --config."
        ) from None
    raise CannotReplay(
        f"{directory} has no configuration of the environment {environment}, neither in {environment}.yaml nor in "
        f"{RUN_CONFIG_NAME}. Give its YAML with --config."
    )


def _recorded_files(directory: Path, environment: str) -> list[Path]:
    return [file for file in (directory / f"{environment}.yaml", directory / RUN_CONFIG_NAME) if file.is_file()]


def _describe_other_environment(config: Config, directory: Path, environment: str) -> Iterator[str]:
    """Yield a note for each difference between the environment of a configuration and the recorded one."""
    if config.run.name != environment:
        yield f"{config.file_name} has another run.name: {config.run.name}; recorded: {environment}"
    recorded_class = _recorded_class(directory, environment)
    if recorded_class not in (None, config.environment_class_path):
        yield (
            f"{config.file_name} has another environment.class: {config.environment_class_path}; recorded: "
            f"{recorded_class}"
        )


def _recorded_class(directory: Path, environment: str) -> object:
    """Return the name of the recorded class, or None if it is not known. The class may no longer exist."""
    for file in _recorded_files(directory, environment):
        with suppress(ConfigFileError):
            data = read_document(file, []).data
            run, section = data.get("run"), data.get("environment")
            if isinstance(run, dict) and isinstance(section, dict) and run.get("name") == environment:
                return section.get("class")
    return None
