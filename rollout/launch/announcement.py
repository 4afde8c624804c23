"""Tells the trainer on the trajectories queue when a launch begins and when it has ended."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import structlog

from rollout.records.announcing import put_in_every_partition
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.rundir.directory import RunDirectory
from transports import Queue, QueueError

log = structlog.get_logger()

_END_TIMEOUT = 15.0
"""The time for the records that say that the launch has ended. A queue that does not answer must not keep it alive."""


@asynccontextmanager
async def announced_launch(
    queue: Queue,
    directory: RunDirectory,
    environment: str,
    launch_number: int,
    *,
    is_done: Callable[[], bool],
    report_failure: Callable[[str], None],
) -> AsyncIterator[None]:
    """Say on the trajectories queue that the launch runs, and at the end of the `with` block that it has ended.

    Args:
        queue: the trajectories queue of the environment.
        directory: the directory of the run.
        environment: the name of the environment.
        launch_number: the number of the launch in its run.
        is_done: returns whether every rollout of the environment has ended. It is called at the end.
        report_failure: gets a sentence if the queue does not accept the end. Then the trainer does not learn the end.

    Raises:
        QueueError: the queue does not accept the beginning.
    """
    status = LaunchStatus(
        run=directory.run_id,
        environment=environment,
        launch=launch_number,
        phase=LaunchPhase.RUNNING,
        directory=str(directory.path),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    await put_in_every_partition(queue, status)
    try:
        yield
    finally:
        ended = replace(status, phase=LaunchPhase.DONE if is_done() else LaunchPhase.STOPPED)
        problem = f"it did not accept the record within {_END_TIMEOUT:g} s"
        with anyio.move_on_after(_END_TIMEOUT, shield=True) as scope:
            try:
                await put_in_every_partition(queue, ended)
                problem = ""
            except QueueError as error:
                problem = str(error)
        if scope.cancelled_caught or problem:
            text = f"the trainer does not learn that the launch has ended, because {queue.url} (queue.url): {problem}"
            log.warning("the end of the launch was not announced", environment=environment, error=problem)
            report_failure(text)
