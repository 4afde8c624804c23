"""Remembers which launches write to a queue, and whether they have ended, as far as a reader knows.

A launch puts its status in every partition (`rollout.records.launch_status`). The saved state of a reader contains the
statuses that the reader has settled. It settles an end only when it has returned everything before it. If a state
said more, a restarted reader would end while another process still held the lease of the rest.
"""

import os
import socket
from collections.abc import Mapping, Sequence, Set
from typing import Any, Self

from rollout.records.launch_status import LaunchPhase, LaunchStatus, pop_status, status_fields

_MAX_ENVIRONMENTS = 256
"""The number of environments of ended runs that are remembered; runs may share a queue for a long time."""


class KnownLaunches:
    """The newest status of each environment in each partition."""

    def __init__(self) -> None:
        self._statuses: dict[str, dict[int, LaunchStatus]] = {}
        self._settled: dict[tuple[str, int], LaunchStatus] = {}

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> Self:
        """Return what a state contains. Raises RecordError, KeyError, TypeError or ValueError if it is damaged."""
        known = cls()
        for fields in state:
            known.add(pop_status(dict(fields)))
        known.settle()
        return known

    def state(self) -> list[dict[str, Any]]:
        """Return the settled statuses as JSON-like data."""
        return [status_fields(status) for status in self._settled.values()]

    def settle(self) -> None:
        """Add everything that is known to the next state."""
        self._settled = {
            (name, partition): status
            for name, statuses in self._statuses.items()
            for partition, status in statuses.items()
        }

    def add(self, status: LaunchStatus) -> None:
        """Remember a status, unless a newer one of the same partition is known."""
        statuses = self._statuses.setdefault(status.environment_identity, {})
        known = statuses.get(status.partition)
        if known is None or _age(known) <= _age(status):
            statuses[status.partition] = status
            if status.phase is LaunchPhase.RUNNING:
                self._settled[status.environment_identity, status.partition] = status
        self._forget_oldest()

    def merge(self, other: "KnownLaunches") -> None:
        """Add the statuses that another reader knows."""
        for statuses in other._statuses.values():
            for status in statuses.values():
                self.add(status)
        self.settle()

    def give_up(self, runs: Set[str]) -> None:
        """Forget the launches of these runs."""
        self._statuses = {
            name: statuses
            for name, statuses in self._statuses.items()
            if not any(status.run in runs for status in statuses.values())
        }

    def all_ended(self, partitions: Sequence[int] | None) -> bool:
        """Whether a launch is known, and the newest launch of every environment has ended.

        Args:
            partitions: the partitions that the reader reads; None: all. The end must have been put in each of them.
        """
        return bool(self._statuses) and all(_has_ended(statuses, partitions) for statuses in self._statuses.values())

    @property
    def any_elsewhere(self) -> bool:
        """Whether a launch runs on another machine."""
        host = socket.gethostname()
        return any(status.host != host for statuses in self._statuses.values() for status in statuses.values())

    @property
    def all_done(self) -> bool:
        """Whether the newest launch of every environment said that every rollout has ended."""
        return bool(self._statuses) and all(
            _newest(statuses).phase is LaunchPhase.DONE for statuses in self._statuses.values()
        )

    def describe(self, partitions: Sequence[int] | None) -> str:
        """Return sentences that say which launch a reader waits for, and what to do if that launch was killed."""
        if not self._statuses:
            return (
                "This reader knows of no launch that writes to this queue. Start `rollout launch` with this queue as "
                "queue.url, and check that both programs use the same URL. If a trainer has consumed the run already, "
                "load its state; to read a file:// queue with retain=true again, add replay=true to the URL."
            )
        unended = [_newest(statuses) for statuses in self._statuses.values() if not _has_ended(statuses, partitions)]
        if not unended:
            return "Every launch that wrote to this queue has ended. The reader waits for a resumed or a new launch."
        status = unended[0]
        others = f" (and {len(unended) - 1} more)" if len(unended) > 1 else ""
        resume = f"`rollout launch --resume {status.directory} --workers N`"
        if status.phase is LaunchPhase.RUNNING and _was_killed(status):
            advice = f"Its process {status.pid} does not run any more: it was killed. Continue it with {resume}."
        else:
            advice = f"If it was killed, continue it with {resume}."
        return (
            f"The launch of run {status.run}, environment {status.environment}{others}, has not said that it has "
            f"ended. It runs on {status.host} as process {status.pid}. {advice} If nobody will continue it, name the "
            "run in ReaderSettings.given_up_runs."
        )

    def describe_ended(self) -> str:
        """Return the beginning of a sentence that says which environments have ended, such as the last three."""
        names = list(self._statuses)
        return f"{', '.join(names[-3:])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} ended"

    def _forget_oldest(self) -> None:
        ended = [name for name, statuses in self._statuses.items() if _has_ended(statuses, None)]
        for name in ended[: max(0, len(ended) - _MAX_ENVIRONMENTS)]:
            del self._statuses[name]


def _age(status: LaunchStatus) -> tuple[int, bool]:
    """Return a value that is higher for a newer status of the same partition."""
    return status.launch, status.phase is not LaunchPhase.RUNNING


def _newest(statuses: Mapping[int, LaunchStatus]) -> LaunchStatus:
    return max(statuses.values(), key=_age)


def _has_ended(statuses: Mapping[int, LaunchStatus], partitions: Sequence[int] | None) -> bool:
    """Whether the newest launch has put its end in each of these partitions."""
    newest = _newest(statuses)
    if newest.phase is LaunchPhase.RUNNING:
        return False
    expected = range(newest.partitions) if partitions is None else partitions
    return all(
        partition in statuses
        and statuses[partition].launch == newest.launch
        and statuses[partition].phase is not LaunchPhase.RUNNING
        for partition in expected
    )


def _was_killed(status: LaunchStatus) -> bool:
    """Whether the launch ran on this machine and its process does not exist any more."""
    if status.host != socket.gethostname():
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
