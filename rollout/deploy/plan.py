"""Plans a run under a scheduler: one launch sends the orders, and workers join its run.

The plan contains the path of the run's directory. The launch creates the directory when it starts, and the workers use
the same path. When all rollouts have ended, the launch marks the run as ended, and the workers exit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import Config
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import load_launch_configs
from transports.redaction import hide_passwords
from transports.urls import split_url

_GRACE_MARGIN_SECONDS = 15
"""A process has `worker.grace` seconds to end. The scheduler kills it this number of seconds later."""
_WORKER_BASE_MB, _MB_PER_ROLLOUT = 512, 2
"""The memory in MB of a worker without rollouts, and for each rollout; both are several times the usual use."""


class CannotRender(ConfigurationError):
    """These configurations cannot run under a scheduler, so no files are written."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of one environment.

    Attributes:
        config_path: the YAML file of the environment.
        config: the checked configuration.
        worker_count: the number of workers.
    """

    config_path: Path
    config: Config
    worker_count: int

    @property
    def name(self) -> str:
        """The name of the environment, `run.name`."""
        return self.config.run.name

    @property
    def memory_mb(self) -> int:
        """The memory of one worker in MB, rounded up to a multiple of 256."""
        needed_mb = _WORKER_BASE_MB + _MB_PER_ROLLOUT * self.config.worker.concurrency
        return -(-needed_mb // 256) * 256

    @property
    def grace_seconds(self) -> int:
        """The number of seconds between SIGTERM and SIGKILL."""
        return round(self.config.worker.grace) + _GRACE_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one run under a scheduler.

    Attributes:
        name: the name of the run.
        run_directory: the path of the run's directory; it must be the same on all machines.
        worker_groups: the workers of each environment.
        overrides: the `KEY=VALUE` strings that change keys of all configurations.
    """

    name: str
    run_directory: Path
    worker_groups: tuple[WorkerGroup, ...]
    overrides: tuple[str, ...]

    @property
    def memory_mb(self) -> int:
        """The memory of the launch in MB; the launch plays no rollouts."""
        return _WORKER_BASE_MB


def plan_run(name: str, files: Sequence[Path], overrides: Sequence[str], workers_per_group: int) -> Plan:
    """Return the plan of a run with these configurations and `workers_per_group` workers for each of them.

    Raises:
        CannotRender: there is no configuration, or workers on other machines could not reach a queue or an engine.
        ConfigurationError: a configuration is not valid, or two configurations have the same `run.name`.
    """
    worker_groups = tuple(
        WorkerGroup(launch_config.file, launch_config.config, workers_per_group)
        for launch_config in load_launch_configs(files, overrides)
    )
    if not worker_groups:
        raise CannotRender("rollout launch --render: no configuration is given. Add the YAML file of each environment.")
    for group in worker_groups:
        _require_reachable_urls(group)
    return Plan(name, worker_groups[0].config.run.directory / name, worker_groups, tuple(overrides))


def _require_reachable_urls(group: WorkerGroup) -> None:
    """Raise CannotRender if other machines cannot reach a queue or an engine of the configuration."""
    queue = group.config.queue
    for key, url in (("queue.url", queue.url), ("queue.tasks", queue.tasks), ("queue.control", queue.control)):
        if url.startswith("memory:") or _is_loopback(url):
            raise CannotRender(
                f"{group.config_path}: {key} is {hide_passwords(url)}, which other machines cannot reach. Use the "
                "address of a Redis server, or file:// in the run's directory if all machines share it."
            )
    for url in group.config.engine.urls:
        if _is_loopback(url):
            raise CannotRender(
                f"{group.config_path}: engine.urls contains {url}, which on each machine means the machine itself. Use "
                "an address at which all workers can reach the engine."
            )


def _is_loopback(url: str) -> bool:
    """Whether only the machine itself can reach this URL."""
    host = split_url(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
