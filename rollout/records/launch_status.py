"""The status of a launch: a record in each partition of the trajectories queue that says where a run begins and ends.

A launch puts a status in every partition before the first rollout, and again after the last one. A reader that has the
newest status of a partition, and receives nothing more, knows that it has all records of that partition.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from rollout.records.bounds import MAX_PATH_CHARACTERS
from rollout.records.fields import Wire, pop_field, pop_integer
from rollout.records.kinds import RecordError
from transports.urls import MAX_PARTITIONS

_MAX_HOST_CHARACTERS = 1024


class LaunchPhase(StrEnum):
    """How far a launch is.

    Attributes:
        RUNNING: it plays rollouts, or it was killed.
        STOPPED: it has ended, but some rollouts of the environment were not played. A resumed launch plays them.
        DONE: it has ended, and every rollout of the environment has ended.
    """

    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class LaunchStatus:
    """The status of a launch for one environment, as the launch puts it in one partition.

    Attributes:
        run: the run's id.
        environment: the name of the environment in the run.
        launch: the number of the launch in its run, from 1 on. A resumed run has a new launch with the next number.
        phase: how far the launch is.
        directory: the path of the run's directory, as the launch knows it.
        host: the name of the machine on which the launch runs.
        pid: the process id of the launch.
        partition: the partition that this record is in.
        partitions: the number of partitions of the queue.
    """

    kind: ClassVar[str] = "launch_status"
    run: str
    environment: str
    launch: int
    phase: LaunchPhase
    directory: str
    host: str
    pid: int
    partition: int = 0
    partitions: int = 1

    @property
    def tag(self) -> str:
        """The record's tag on the queue. No record of a rollout has such a tag, because there is no `#` in it."""
        return f"{self.run}/{self.environment} launch {self.launch} {self.phase}".replace("#", "_")

    @property
    def environment_identity(self) -> str:
        """The name of the environment, unique even if several runs share a queue: RUN/ENVIRONMENT."""
        return f"{self.run}/{self.environment}"


def status_fields(status: LaunchStatus) -> dict[str, Any]:
    """Return the fields of a status for the wire."""
    return {field.name: getattr(status, field.name) for field in fields(status)} | {"phase": status.phase.value}


def pop_status(wire: Wire) -> LaunchStatus:
    """Remove the fields of a status from a decoded map, and return the status. Fields of newer versions are dropped."""
    partitions = pop_integer(wire, "partitions", 1, MAX_PARTITIONS)
    directory, host = pop_field(wire, "directory", str), pop_field(wire, "host", str)
    if len(directory) > MAX_PATH_CHARACTERS or len(host) > _MAX_HOST_CHARACTERS:
        raise RecordError("'directory' or 'host' is too long to be a path or the name of a machine.")
    return LaunchStatus(
        run=pop_field(wire, "run", str),
        environment=pop_field(wire, "environment", str),
        launch=pop_integer(wire, "launch", 1),
        phase=LaunchPhase(pop_field(wire, "phase", str)),
        directory=directory,
        host=host,
        pid=pop_integer(wire, "pid"),
        partition=pop_integer(wire, "partition", 0, partitions - 1),
        partitions=partitions,
    )
