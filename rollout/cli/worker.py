"""`rollout worker`: runs one worker process, alone or with a supervisor."""

from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.options import Configuration, Debug, Overrides


def worker(
    config: Configuration,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Directory of the run to work for; by default run.directory/run.name.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
    supervisor_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    debug: Debug = False,
) -> None:
    """Play the orders on the tasks queue of CONFIG (queue.tasks) until SIGTERM. Several workers may play one run.

    At SIGTERM or Ctrl-C it has worker.grace seconds to finish its rollouts, and gives back the orders of the others. A
    second signal ends it at once.
    """
    from rollout.config.load import load_config
    from rollout.paths import resolve_path
    from rollout.rundir.directory import RunDirectory
    from rollout.worker.link import SupervisorLink
    from rollout.worker.process import WorkerRunner, default_worker_name

    link = SupervisorLink(supervisor_fd) if supervisor_fd is not None else None
    settings = load_config(config, overrides or (link.wait_for_instructions().overrides if link is not None else []))
    directory = RunDirectory(resolve_path(run or settings.run.directory / settings.run.name))
    WorkerRunner(settings, directory, name or default_worker_name(settings.run.name), link).run()
