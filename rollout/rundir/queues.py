"""Gives access to the queues of a run."""

from dataclasses import dataclass

from rollout.config.load import Config
from rollout.config.queue_urls import fill_queue_url
from rollout.rundir.directory import RunDirectory
from transports import Queue, open_queue


@dataclass(frozen=True, slots=True)
class RunQueues:
    """The three queues of one environment in a run: their URLs, and methods that open them.

    Attributes:
        config: the configuration of the environment.
        directory: the directory of the run.
    """

    config: Config
    directory: RunDirectory

    @property
    def tasks(self) -> str:
        """The URL of the queue for orders."""
        return self._fill(self.config.queue.tasks)

    @property
    def trajectories(self) -> str:
        """The URL of the queue for the records of rollouts."""
        return self._fill(self.config.queue.url)

    @property
    def control(self) -> str:
        """The URL of the queue for the trainer's progress."""
        return self._fill(self.config.queue.control)

    def open_tasks(self) -> Queue:
        """Open the tasks queue; its consumers lease single orders."""
        return open_queue(self.tasks, lease="record")

    def open_trajectories(self) -> Queue:
        """Open the trajectories queue; its consumers lease whole partitions."""
        return open_queue(self.trajectories)

    def open_control(self) -> Queue:
        """Open the queue for the trainer's progress."""
        return open_queue(self.control)

    def _fill(self, template: str) -> str:
        return fill_queue_url(template, self.directory.path, self.config.run.name)
