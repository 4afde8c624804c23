"""The plan of a run, for all schedulers: one launch that sends the orders, and workers that join its run.

The plan names the run's directory, and the launch makes it when it starts. The workers use the same path, and end by
themselves once the launch has marked the run as ended.
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
"""A process that should end is killed so many seconds after `worker.grace`."""
_WORKER_BASE_MB, _MB_PER_ROLLOUT = 512, 2
"""Memory of a worker before its first rollout, and for each rollout in flight: several times the usual use."""


class CannotRender(ConfigurationError):
    """These configurations could not run under a scheduler, so no files are written."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of one environment.

    Attributes:
        config_path: the YAML file of the environment.
        config: the checked configuration.
        worker_count: how many workers there are.
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
        """The memory of one worker, rounded up to a multiple of 256."""
        needed_mb = _WORKER_BASE_MB + _MB_PER_ROLLOUT * self.config.worker.concurrency
        return -(-needed_mb // 256) * 256

    @property
    def grace_seconds(self) -> int:
        """The seconds between SIGTERM and SIGKILL."""
        return round(self.config.worker.grace) + _GRACE_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """One run under a scheduler.

    Attributes:
        name: the run's name.
        run_directory: its directory, at the path that all machines use.
        worker_groups: the workers of each environment.
        overrides: the `KEY=VALUE` texts that change keys of all configurations.
    """

    name: str
    run_directory: Path
    worker_groups: tuple[WorkerGroup, ...]
    overrides: tuple[str, ...]

    @property
    def memory_mb(self) -> int:
        """The memory of the launch, which plays no rollouts."""
        return _WORKER_BASE_MB


def plan_run(name: str, files: Sequence[Path], overrides: Sequence[str], workers_per_group: int) -> Plan:
    """Return the plan of a run of these configurations, with `workers_per_group` workers for each.

    Raises:
        CannotRender: there is no configuration, or the parts of the run could not reach each other.
        ConfigurationError: a configuration is not usable, or two have the same name.
    """
    worker_groups = tuple(
        WorkerGroup(launch_config.file, launch_config.config, workers_per_group)
        for launch_config in load_launch_configs(files, overrides)
    )
    if not worker_groups:
        raise CannotRender("rollout launch --render: give the YAML of each environment.")
    for group in worker_groups:
        _require_reachable_urls(group)
    return Plan(name, worker_groups[0].config.run.directory / name, worker_groups, tuple(overrides))


def _require_reachable_urls(group: WorkerGroup) -> None:
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
                f"{group.config_path}: engine.urls has {url}, where each worker reaches only its own machine. Give the "
                "address at which all workers reach that engine."
            )


def _is_loopback(url: str) -> bool:
    host = split_url(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
