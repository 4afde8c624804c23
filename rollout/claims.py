"""Who began which attempt at a rollout, and how the rollout ended: one small file each in the run's directory.

    <rollout>.<n>            attempt n was begun; created exclusively, so that no two attempts share a number
    <rollout>.<n>.returned   its worker gave it back unfinished, on purpose: it does not count against `max_attempts`
    <rollout>.done           the rollout's finished record was accepted; a link to the claim, which tells the outcome

It is a directory, and not a record on the tasks queue, because the run's directory is shared by all workers of a run
anyway (their images lie there), because exclusive creation is all that it asks of a file system, and because it then
goes by the rollout and not by the record: an order that was sent twice still never has two attempts with one number.
Any queue does for the tasks.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from rollout.errors import RolloutError


class ClaimsError(RolloutError):
    """The claims of a run cannot be read or written."""

    infrastructure = True


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that is ours to play. `spent` attempts have begun that count, this one included."""

    rollout: str
    number: int
    spent: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout ended, for summaries; the truth about it is on the trajectories queue."""

    rollout: str
    group: str
    attempt: int
    status: str
    reward: float | None = None
    turns: int = 0
    images: int = 0
    tokens: int = 0
    error: dict[str, str] | None = None
    traceback: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Claims:
    """The claims of one environment in one run, shared by all of its workers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClaimsError(f"{directory}: cannot be made: {error.strerror}.") from None

    def is_done(self, rollout: str) -> bool:
        """Whether its finished record was accepted."""
        return self._path(rollout, "done").exists()

    def spent(self, rollout: str) -> int:
        """How many attempts were begun that count."""
        return sum(not returned for returned in self._begun(rollout))

    def begin(self, rollout: str) -> Claim:
        """Claim the next attempt, durably."""
        while True:
            begun = list(self._begun(rollout))
            number = len(begun) + 1
            try:
                self._create(self._path(rollout, str(number)))
            except FileExistsError:
                continue  # somebody claimed that number a moment ago
            return Claim(rollout, number, begun.count(False) + 1)

    def hand_back(self, claim: Claim) -> None:
        """Say that the attempt was given up on purpose, and that its failure says nothing about the rollout."""
        with suppress(FileExistsError):
            self._create(self._path(claim.rollout, f"{claim.number}.returned"))

    def finish(self, outcome: Outcome) -> None:
        """Record the outcome; the first one stays. To be called once the finished record is accepted."""
        mine = self._path(outcome.rollout, str(outcome.attempt))
        try:
            mine.write_bytes(orjson.dumps(asdict(outcome)))
            # The claim becomes the outcome by a link, which appears whole, and only once.
            with suppress(FileExistsError):
                os.link(mine, self._path(outcome.rollout, "done"))
        except OSError as error:
            raise ClaimsError(f"{mine}: the outcome was not recorded: {error.strerror}.") from None

    def outcome(self, rollout: str) -> Outcome | None:
        """How a rollout ended, if it has."""
        try:
            return _read(self._path(rollout, "done"))
        except FileNotFoundError:
            return None

    def outcomes(self) -> Iterator[Outcome]:
        """Every rollout that is done."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".done"):
                yield _read(Path(entry.path))

    def unseen(self, seen: set[str]) -> Iterator[Outcome]:
        """Every rollout that is done and did not come before for the same `seen`, which takes note of it."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".done") and entry.name not in seen:
                yield _read(Path(entry.path))
                seen.add(entry.name)

    def _begun(self, rollout: str) -> Iterator[bool]:
        """For each attempt that was begun, whether it was given back."""
        number = 1
        while self._path(rollout, str(number)).exists():
            yield self._path(rollout, f"{number}.returned").exists()
            number += 1

    def _create(self, path: Path) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            # A number that a power cut makes us use again would mix the records of two attempts.
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except FileExistsError:
            raise
        except OSError as error:
            raise ClaimsError(f"{path}: cannot be claimed: {error.strerror}.") from None

    def _path(self, rollout: str, suffix: str) -> Path:
        readable = quote(rollout, safe="", errors="replace")[:100]
        digest = hashlib.blake2b(rollout.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return self._directory / f"{readable}-{digest}.{suffix}"


def _read(path: Path) -> Outcome:
    told: dict[str, Any] = orjson.loads(path.read_bytes())
    return Outcome(**told)
