"""Records which attempts at a rollout started, and how the rollout ended, in small files of the run's directory.

    <rollout>.<n>            attempt n has started; exclusive creation makes sure that no two attempts share a number
    <rollout>.<n>.returned   the worker ended the attempt on purpose, so it does not count against `max_attempts`
    <rollout>.<n>.failed     the infrastructure failed the attempt, or its environment asked for another attempt
    <rollout>.<n>.outcome    the outcome, while it is being written
    <rollout>.done           the finished record was accepted; the file contains the outcome

Claims are files, and not records on the tasks queue, for three reasons. All workers of a run already share its
directory, because their images are there. The file system needs only exclusive creation and atomic renaming. A claim
belongs to the rollout and not to the order, so two attempts never have the same number, even if an order is sent twice.
Therefore the tasks can be on any queue.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from rollout.errors import RolloutError
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.old_endings import upgrade_ending
from rollout.rundir.file_names import rollout_file_name
from rollout.texts import dump_json

log = structlog.get_logger()


class ClaimsError(RolloutError):
    """The claims of a run cannot be read or written."""

    infrastructure = True


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that a worker has claimed for itself.

    Attributes:
        rollout_id: the id of the rollout.
        attempt_number: the number of the attempt; the first attempt has the number 1.
        attempts_used: the number of attempts that count against `max_attempts`, including this one.
    """

    rollout_id: str
    attempt_number: int
    attempts_used: int


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """Says how a rollout's attempts have ended so far.

    Attributes:
        attempts_used: the number of attempts that count against `max_attempts`.
        unreported_attempts: the number of attempts without a report of their end: they still run, or their worker died.
    """

    attempts_used: int
    unreported_attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says how a rollout ended, for summaries. The trainer uses only the records on the trajectories queue.

    Attributes:
        rollout: the id of the rollout.
        group: the id of its task.
        attempt: the number of the attempt that finished.
        status: the status in the finished record, see `RolloutStatus`.
        limit: the limit that stopped the rollout, see `RolloutLimit`.
        reward: the reward; None if the rollout has no reward.
        rewards: the named rewards.
        turns: the number of turns.
        images: the number of different images.
        tokens: the number of tokens that the policy sampled.
        queue_bytes: the size of the last attempt's records in bytes.
        error: the type and the message of the error; None if there was no error.
        traceback: the traceback of an error in the environment or the engine; None if there is none.
        metrics: the metrics of the score.
        retries: the number of attempts that started because the infrastructure failed the attempt before, its worker
            died, or its environment asked for another attempt.
        request_retries: the number of requests that were sent to an engine again, in the attempts of the worker that
            finished the rollout.
        close_failed: whether the environment's `close` failed or took too long.
        retry_reason: the latest reason why the environment asked for another attempt; None if it did not.
        gateway: what happened in the gateway, see `rollout.records.gateway_counts`; empty if no program used it.
        prompts: the number of turns by how their prompt was made, with the values of `PromptSource`.
    """

    rollout: str
    group: str
    attempt: int
    status: str
    limit: str = RolloutLimit.NONE.value
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    turns: int = 0
    images: int = 0
    tokens: int = 0
    queue_bytes: int = 0
    error: dict[str, str] | None = None
    traceback: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    request_retries: int = 0
    close_failed: bool = False
    retry_reason: str | None = None
    gateway: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)


_OUTCOME_ADAPTER = TypeAdapter(Outcome)


def _to_dict(outcome: Outcome) -> dict[str, Any]:
    """Return the content of an outcome's file."""
    fields = asdict(outcome)
    if not outcome.gateway:
        del fields["gateway"]
    return fields


class Claims:
    """Reads and writes the claims of one environment in one run. All workers of the environment share these files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._damaged_names: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClaimsError(f"{directory}: the directory of claims cannot be created: {error.strerror}.") from None

    def is_done(self, rollout_id: str) -> bool:
        """Whether the rollout's finished record was accepted."""
        return self._path(rollout_id, "done").exists()

    def attempt_history(self, rollout_id: str) -> AttemptHistory:
        """Return how the rollout's attempts have ended so far."""
        endings = list(self._attempt_endings(rollout_id))
        return AttemptHistory(len(endings) - endings.count("returned"), endings.count(None))

    def claim_next_attempt(self, rollout_id: str) -> Claim:
        """Claim the rollout's next attempt. The claim survives a power cut."""
        while True:
            endings = list(self._attempt_endings(rollout_id))
            number = len(endings) + 1
            try:
                self._create_exclusively(self._path(rollout_id, str(number)))
            except FileExistsError:
                continue  # another worker has just claimed this number
            return Claim(rollout_id, number, number - endings.count("returned"))

    def mark_returned(self, claim: Claim) -> None:
        """Report that the worker ended the attempt on purpose; the attempt does not count against `max_attempts`."""
        self._mark_ended(claim, "returned")

    def mark_failed(self, claim: Claim) -> None:
        """Report that the attempt failed without a finished record, and that its worker is still alive."""
        self._mark_ended(claim, "failed")

    def record_outcome(self, outcome: Outcome) -> None:
        """Record the outcome, unless the rollout already has one. Call it when the finished record is accepted.

        If two attempts end at the same moment, the outcome of one of them stays, and either is right. Outcomes are only
        for summaries; the trainer uses the records to decide which attempt it takes.
        """
        if self.is_done(outcome.rollout):
            return
        draft_path = self._path(outcome.rollout, f"{outcome.attempt}.outcome")
        try:
            draft_path.write_bytes(dump_json(_to_dict(outcome)))
            draft_path.rename(self._path(outcome.rollout, "done"))  # atomic: no process reads a part of the file
        except OSError as error:
            raise ClaimsError(f"{draft_path}: the outcome cannot be written: {error.strerror}.") from None

    def outcome(self, rollout_id: str) -> Outcome | None:
        """Return the outcome of a rollout; None if the rollout has not ended, or its file is damaged."""
        return self._read_outcome(self._path(rollout_id, "done"))

    def new_outcomes(self, seen_names: set[str]) -> Iterator[Outcome]:
        """Yield the outcomes in files that are not in `seen_names`, and add the names of these files to the set."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".done") and entry.name not in seen_names:
                if (outcome := self._read_outcome(Path(entry.path))) is not None:
                    yield outcome
                seen_names.add(entry.name)

    def _read_outcome(self, path: Path) -> Outcome | None:
        """Return the outcome in a file; None if the file does not exist or is damaged.

        A rollout with a damaged file is still done, because the file exists.
        """
        try:
            fields = json.loads(path.read_bytes())
            if isinstance(fields, dict) and "limit" not in fields:
                upgrade_ending(fields)
            outcome = _OUTCOME_ADAPTER.validate_python(fields)
            RolloutStatus(outcome.status), RolloutLimit(outcome.limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClaimsError(f"{path}: the outcome cannot be read: {error.strerror}.") from None
        except ValueError as error:
            if path.name not in self._damaged_names:
                self._damaged_names.add(path.name)
                log.warning(
                    "the file of an outcome is damaged, so the summary does not contain its rollout",
                    file=str(path),
                    error=error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error),
                )
            return None
        return outcome

    def _attempt_endings(self, rollout_id: str) -> Iterator[str | None]:
        """Yield the ending of each attempt that started; None if its end was not reported."""
        number = 1
        while self._path(rollout_id, str(number)).exists():
            markers = (
                ending for ending in ("returned", "failed") if self._path(rollout_id, f"{number}.{ending}").exists()
            )
            yield next(markers, None)
            number += 1

    def _mark_ended(self, claim: Claim, ending: str) -> None:
        with suppress(FileExistsError):
            self._create_exclusively(self._path(claim.rollout_id, f"{claim.attempt_number}.{ending}"))

    def _create_exclusively(self, path: Path) -> None:
        """Create a file durably; raise FileExistsError if it exists."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            # Without fsync, a number might be used again after a power cut, and mix the records of two attempts.
            directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)
        except FileExistsError:
            raise
        except OSError as error:
            raise ClaimsError(f"{path}: the claim cannot be written: {error.strerror}.") from None

    def _path(self, rollout_id: str, suffix: str) -> Path:
        return self._directory / f"{rollout_file_name(rollout_id)}.{suffix}"
