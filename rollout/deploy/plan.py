"""What is to run where, in the terms that schedulers share: one launch that feeds, and workers that join its run.

The run's directory is named here and made by the launch when it starts; the workers join it under the same path, and
end by themselves once the launch has written that all of it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import Config
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import load_members
from transports.urls import split_url, without_password

_LEAVE = 15
"""Seconds on top of `worker.grace` until a process that should end is killed."""
_BASE_MB, _ROLLOUT_MB = 512, 2
"""What a worker holds before its first rollout, and for each in flight: several times what `docs/operations.md` has."""


class CannotRender(ConfigurationError):
    """These configurations cannot run where they should."""


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of one environment."""

    file: Path
    config: Config
    workers: int

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def memory_mb(self) -> int:
        """For one worker, to the next 256."""
        needed = _BASE_MB + _ROLLOUT_MB * self.config.worker.concurrency
        return -(-needed // 256) * 256

    @property
    def grace(self) -> int:
        """Seconds from the signal to the end."""
        return round(self.config.worker.grace) + _LEAVE


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: its name, its directory as all machines see it, its crews, and the overrides that hold everywhere."""

    name: str
    directory: Path
    crews: tuple[Crew, ...]
    overrides: tuple[str, ...]

    @property
    def memory_mb(self) -> int:
        """For the launch, which holds no rollouts."""
        return _BASE_MB


def plan(name: str, files: Sequence[Path], overrides: Sequence[str], workers: int) -> Plan:
    """Plan a run of these configurations, with so many workers for each.

    Raises:
        CannotRender: its parts could not reach each other.
        ConfigurationError: a configuration is not usable, or two have the same name.
    """
    crews = tuple(Crew(member.file, member.config, workers) for member in load_members(files, overrides))
    if not crews:
        raise CannotRender("rollout launch --render: give the YAML of each environment.")
    for crew in crews:
        _require_reachable(crew)
    return Plan(name, crews[0].config.run.directory / name, crews, tuple(overrides))


def _require_reachable(crew: Crew) -> None:
    queue = crew.config.queue
    for key, url in (("queue.url", queue.url), ("queue.tasks", queue.tasks), ("queue.control", queue.control)):
        if url.startswith("memory:") or _is_loopback(url):
            raise CannotRender(
                f"{crew.file}: {key} is {without_password(url)}, which other machines cannot reach. Use the address of "
                "a Redis server, or file:// in the run's directory if all machines share it."
            )
    for url in crew.config.engine.urls:
        if _is_loopback(url):
            raise CannotRender(
                f"{crew.file}: engine.urls has {url}, which is another machine for each worker. Give the address by "
                "which all of them reach that engine."
            )


def _is_loopback(url: str) -> bool:
    host = split_url(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
