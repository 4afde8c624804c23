"""`rollout worker`: one worker process, alone or with a supervisor."""

from collections.abc import Sequence
from pathlib import Path

from rollout.config.load import load_config
from rollout.rundir.directory import RunDirectory
from rollout.worker.link import SupervisorLink
from rollout.worker.process import WorkerRunner, default_worker_name


def worker_command(
    path: Path, overrides: Sequence[str], *, run: Path | None, name: str | None, supervisor_fd: int | None
) -> None:
    link = SupervisorLink(supervisor_fd) if supervisor_fd is not None else None
    config = load_config(path, overrides)
    directory = RunDirectory((run or config.run.directory / config.run.name).resolve())
    WorkerRunner(config, directory, name or default_worker_name(config.run.name), link).run()
