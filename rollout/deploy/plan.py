"""What is to run where, in the terms that schedulers share: one launch that feeds, and workers that join its run.

The run's directory is named here and made by the launch when it starts; the workers join it under the same path, and
end by themselves once the launch has written that all of it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import Config
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import load_launch_configs
from transports.urls import split_url, without_password

_GRACE_MARGIN_SECONDS = 15
"""Seconds on top of `worker.grace` until a process that should end is killed."""
_WORKER_BASE_MB, _MB_PER_ROLLOUT = 512, 2
"""What a worker holds before its first rollout, and for each in flight: several times what `docs/operations.md` has."""


class CannotRender(ConfigurationError):
    """These configurations cannot run where they should."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of one environment."""

    config_path: Path
    config: Config
    worker_count: int

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def memory_mb(self) -> int:
        """For one worker, to the next 256."""
        needed_mb = _WORKER_BASE_MB + _MB_PER_ROLLOUT * self.config.worker.concurrency
        return -(-needed_mb // 256) * 256

    @property
    def grace_seconds(self) -> int:
        """Seconds from the signal to the end."""
        return round(self.config.worker.grace) + _GRACE_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: its name, its directory as all machines see it, its worker groups, and the overrides for all of them."""

    name: str
    run_directory: Path
    worker_groups: tuple[WorkerGroup, ...]
    overrides: tuple[str, ...]

    @property
    def memory_mb(self) -> int:
        """For the launch, which holds no rollouts."""
        return _WORKER_BASE_MB


def plan_run(name: str, files: Sequence[Path], overrides: Sequence[str], workers_per_group: int) -> Plan:
    """Plan a run of these configurations, with so many workers for each.

    Raises:
        CannotRender: its parts could not reach each other.
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
                f"{group.config_path}: {key} is {without_password(url)}, which other machines cannot reach. Use the "
                "address of a Redis server, or file:// in the run's directory if all machines share it."
            )
    for url in group.config.engine.urls:
        if _is_loopback(url):
            raise CannotRender(
                f"{group.config_path}: engine.urls has {url}, which is another machine for each worker. Give the "
                "address by which all of them reach that engine."
            )


def _is_loopback(url: str) -> bool:
    host = split_url(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
