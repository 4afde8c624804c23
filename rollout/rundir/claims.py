"""Who began which attempt at a rollout, and how the rollout ended: one small file each in the run's directory.

    <rollout>.<n>            attempt n was begun; created exclusively, so that no two attempts share a number
    <rollout>.<n>.returned   its worker gave it back unfinished, on purpose: it does not count against `max_attempts`
    <rollout>.<n>.failed     the infrastructure failed it, and its worker lived to tell
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
class Past:
    """What became of a rollout so far: `spent` attempts count; of `unheard` ones the workers were not heard again."""

    spent: int
    unheard: int


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

    def past(self, rollout: str) -> Past:
        """What became of the attempts that were begun."""
        ends = list(self._ends(rollout))
        return Past(len(ends) - ends.count("returned"), ends.count(None))

    def begin(self, rollout: str) -> Claim:
        """Claim the next attempt, durably."""
        while True:
            ends = list(self._ends(rollout))
            number = len(ends) + 1
            try:
                self._create(self._path(rollout, str(number)))
            except FileExistsError:
                continue  # somebody claimed that number a moment ago
            return Claim(rollout, number, number - ends.count("returned"))

    def hand_back(self, claim: Claim) -> None:
        """Say that the attempt was given up on purpose, and that its failure says nothing about the rollout."""
        self._end(claim, "returned")

    def fail(self, claim: Claim) -> None:
        """Say that the infrastructure failed the attempt, and that it is not what killed its worker."""
        self._end(claim, "failed")

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
        return self.unseen(set())

    def unseen(self, seen: set[str]) -> Iterator[Outcome]:
        """Every rollout that is done and did not come before for the same `seen`, which takes note of it."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".done") and entry.name not in seen:
                yield _read(Path(entry.path))
                seen.add(entry.name)

    def _ends(self, rollout: str) -> Iterator[str | None]:
        """For each attempt that was begun, what was said of its end."""
        number = 1
        while self._path(rollout, str(number)).exists():
            said = (end for end in ("returned", "failed") if self._path(rollout, f"{number}.{end}").exists())
            yield next(said, None)
            number += 1

    def _end(self, claim: Claim, end: str) -> None:
        with suppress(FileExistsError):
            self._create(self._path(claim.rollout, f"{claim.number}.{end}"))

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
