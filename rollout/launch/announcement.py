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
from transports import Queue, QueueError, QueueFull

log = structlog.get_logger()

_END_TIMEOUT = 30.0
"""The time for the records that say that the launch has ended. A queue that does not answer must not keep it alive."""
_RETRY_SECONDS = 1.0


@asynccontextmanager
async def announced_launch(
    queue: Queue,
    directory: RunDirectory,
    environment: str,
    launch_number: int,
    *,
    end_phase: Callable[[], LaunchPhase],
    report: Callable[[str], None],
) -> AsyncIterator[None]:
    """Say on the trajectories queue that the launch runs, and at the end of the `with` block that it has ended.

    If the queue is full, the beginning waits until a trainer has read, as new rollouts wait too.

    Args:
        queue: the trajectories queue of the environment.
        directory: the directory of the run.
        environment: the name of the environment.
        launch_number: the number of the launch in its run.
        end_phase: returns the phase to announce at the end. If it is RUNNING, no end is announced.
        report: gets a sentence if the queue is full at the beginning, or if it does not accept the end. Then the
            trainer does not learn the end.

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
    end_timeout = _END_TIMEOUT
    try:
        try:
            await _put_when_there_is_room(queue, status, report)
        except QueueError:
            end_timeout = 0.0  # the end would not be accepted either; but some partitions may have the beginning
            raise
        yield
    finally:
        await _put_end(queue, replace(status, phase=end_phase()), report, end_timeout)


async def _put_when_there_is_room(queue: Queue, status: LaunchStatus, report: Callable[[str], None]) -> None:
    has_reported = False
    while True:
        try:
            await put_in_every_partition(queue, status)
            return
        except QueueFull as error:
            if not has_reported:
                has_reported = True
                log.warning("the queue is full", environment=status.environment, error=str(error))
                report(f"waiting for a trainer, because the queue is full: {error}")
        await anyio.sleep(_RETRY_SECONDS)


async def _put_end(queue: Queue, status: LaunchStatus, report: Callable[[str], None], timeout: float) -> None:
    """Put the end, and try again until the timeout if the queue does not accept it."""
    if status.phase is LaunchPhase.RUNNING:
        return
    problem = f"it did not answer within {timeout:g} s."
    with anyio.move_on_after(max(timeout, _RETRY_SECONDS), shield=True):
        deadline = anyio.current_time() + timeout
        while True:
            try:
                await put_in_every_partition(queue, status)
                return
            except QueueError as error:
                problem = str(error)
            if anyio.current_time() >= deadline:
                break
            await anyio.sleep(min(_RETRY_SECONDS, timeout / 4))
    log.error("the end of the launch was not announced", environment=status.environment, error=problem)
    report(
        f"the trainer does not learn that the launch has ended, because {queue.url} (queue.url) did not accept it: "
        f"{problem} Let the trainer read what is there; then `rollout launch --resume {status.directory}` says it."
    )
