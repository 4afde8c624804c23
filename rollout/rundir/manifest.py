"""Which configurations a launch was begun with, written into the run's directory, so that it can be continued."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from rollout.config.load import Config, load_config
from rollout.errors import ConfigurationError
from rollout.rundir.directory import RunDirectory, RunDirectoryError, new_run

_FILE = "launch.json"
_FIXED = ("environment", "tasks")
"""The sections that say which rollouts there are."""


class CannotResume(ConfigurationError):
    """There is no launch in this directory, or it was begun with other tasks."""


@dataclass(frozen=True, slots=True)
class Member:
    """One configuration of a launch, by the file and the overrides that every worker reads it from again."""

    file: Path
    overrides: tuple[str, ...]
    config: Config


def begin(files: Sequence[Path], overrides: Sequence[str], at: Path | None = None) -> tuple[RunDirectory, list[Member]]:
    """A new run of these configurations, in a directory of its own, or in that one."""
    members = load_members(files, overrides)
    if at is None:
        name = "-".join(member.config.run.name for member in members)
        directory = new_run(members[0].config.run.directory, name[:80])
    else:
        directory = RunDirectory(at.resolve())
        directory.make()
    for member in members:
        directory.keep_config(member.config, f"{member.config.run.name}.yaml")
    told = [{"file": str(m.file), "overrides": m.overrides, "environment": m.config.run.name} for m in members]
    draft = directory.path / f"{_FILE}.draft"
    try:
        draft.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
        draft.rename(directory.path / _FILE)  # last, and whole: from here on the run can be continued
    except OSError as error:
        raise RunDirectoryError(f"{directory.path / _FILE} cannot be written: {error.strerror}.") from None
    return directory, members


def load_members(files: Sequence[Path], overrides: Sequence[str]) -> list[Member]:
    """The configurations of one run.

    Raises:
        ConfigError: one of them is not usable.
        ConfigurationError: two have the same name.
    """
    members = [Member(file.resolve(), tuple(overrides), load_config(file, overrides)) for file in files]
    names = [member.config.run.name for member in members]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise ConfigurationError(f"two configurations have the run.name {doubled!r}; their rollouts would be mixed up.")
    return members


def was_begun(path: Path) -> bool:
    """Whether there is a run in this directory that can be continued."""
    return (path / _FILE).exists()


def resume(path: Path, overrides: Sequence[str], files: Sequence[Path] = ()) -> tuple[RunDirectory, list[Member]]:
    """The run in a directory, to be continued. More overrides may change anything but its tasks.

    Raises:
        CannotResume: there is none, it has other tasks, or, where files are named, it was begun with others.
    """
    directory = RunDirectory(path.resolve())
    try:
        told: list[dict[str, Any]] = orjson.loads((path / _FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CannotResume(f"{path}: no launch was begun here ({_FILE}: {error}).") from None
    begun, named = [entry["file"] for entry in told], [str(file.resolve()) for file in files]
    if named and named != begun:
        raise CannotResume(f"{path}: this run was begun with {', '.join(begun)}, not with {', '.join(named)}.")
    members = []
    for entry in told:
        given = (*entry["overrides"], *overrides)
        member = Member(Path(entry["file"]), given, load_config(Path(entry["file"]), given))
        _require_same_tasks(member, _kept(path / f"{entry['environment']}.yaml"), path)
        members.append(member)
    return directory, members


def _kept(file: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CannotResume(f"{file}: what the run was begun with cannot be read: {error}. Begin a new run.") from None
    return kept


def _require_same_tasks(member: Member, kept: dict[str, Any], path: Path) -> None:
    now = yaml.safe_load(yaml.safe_dump(member.config.dump()))
    changed = [section for section in _FIXED if now[section] != kept[section]]
    if now["run"]["name"] != kept["run"]["name"]:
        changed.append("run.name")
    if changed:
        raise CannotResume(
            f"{member.file}: {' and '.join(changed)} changed since the run in {path} was begun, so that its "
            "rollouts would be others. Begin a new run, or undo the change."
        )
