"""`rollout worker`: one worker process, alone or with a supervisor."""

from collections.abc import Sequence
from pathlib import Path

from rollout.config.load import load_config
from rollout.hosting import Host, worker_name
from rollout.link import SupervisorLink
from rollout.rundir.directory import RunDirectory


def worker_command(
    path: Path, overrides: Sequence[str], *, run: Path | None, name: str | None, supervisor_fd: int | None
) -> None:
    link = SupervisorLink(supervisor_fd) if supervisor_fd is not None else None
    config = load_config(path, overrides)
    directory = RunDirectory((run or config.run.directory / config.run.name).resolve())
    Host(config, directory, name or worker_name(config.run.name), link).work()
