"""Which attempts at a rollout started, and how the rollout ended: one small file for each in the run's directory.

    <rollout>.<n>            attempt n started; created exclusively, so that no two attempts share a number
    <rollout>.<n>.returned   the worker gave the attempt back on purpose: it does not count against `max_attempts`
    <rollout>.<n>.failed     the infrastructure failed the attempt, or its environment asked for another one
    <rollout>.<n>.outcome    the outcome while it is being written
    <rollout>.done           the finished record was accepted; contains the outcome

Claims are files, and not records on the tasks queue, for three reasons. All workers of a run share its directory
anyway, because their images are there. The file system needs only exclusive creation and atomic renaming. And a claim
belongs to the rollout, not to the record: an order that was sent twice never has two attempts with one number. So any
queue will do for the tasks.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

import structlog
from pydantic import TypeAdapter, ValidationError

from rollout.errors import RolloutError
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.old_endings import upgrade_ending
from rollout.texts import dump_json

log = structlog.get_logger()


class ClaimsError(RolloutError):
    """The claims of a run cannot be read or written."""

    infrastructure = True


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that belongs to the worker that claimed it.

    Attributes:
        rollout_id: the rollout.
        attempt_number: the number of the attempt, from 1 on.
        attempts_used: how many attempts count against `max_attempts`, this one included.
    """

    rollout_id: str
    attempt_number: int
    attempts_used: int


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """How a rollout's attempts ended so far.

    Attributes:
        attempts_used: how many attempts count against `max_attempts`.
        unreported_attempts: how many attempts have no report of their end: they still run, or their worker died.
    """

    attempts_used: int
    unreported_attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout ended, for summaries; the records on the trajectories queue are what counts.

    Attributes:
        rollout: the rollout's id.
        group: the id of its task.
        attempt: the number of the attempt that finished.
        status: the status in its finished record, see `RolloutStatus`.
        limit: the limit that stopped it, see `RolloutLimit`.
        reward: its reward; None if it has none.
        rewards: its named rewards.
        turns: how many turns it had.
        images: how many different images it had.
        tokens: how many tokens the policy sampled in it.
        queue_bytes: how many bytes the records of its last attempt have.
        error: the type and the message of its error; None if it has none.
        traceback: the traceback of an error of the environment or the engine; None if there is none.
        metrics: the metrics of its score.
        retries: how many attempts followed one that the infrastructure failed, whose worker died, or whose environment
            asked for another one.
        request_retries: how many requests to engines were sent again, in the attempts of the worker that finished it.
        close_failed: whether `close` of its environment failed or took too long.
        retry_reason: why an environment last asked for another attempt at it; None if none did.
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


_OUTCOME_ADAPTER = TypeAdapter(Outcome)


class Claims:
    """The claims of one environment in one run, shared by all of its workers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._damaged_names: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClaimsError(f"{directory}: the directory cannot be created: {error.strerror}.") from None

    def is_done(self, rollout_id: str) -> bool:
        """Whether its finished record was accepted."""
        return self._path(rollout_id, "done").exists()

    def attempt_history(self, rollout_id: str) -> AttemptHistory:
        """Return what became of the attempts that started."""
        endings = list(self._attempt_endings(rollout_id))
        return AttemptHistory(len(endings) - endings.count("returned"), endings.count(None))

    def claim_next_attempt(self, rollout_id: str) -> Claim:
        """Claim the next attempt, durably."""
        while True:
            endings = list(self._attempt_endings(rollout_id))
            number = len(endings) + 1
            try:
                self._create_exclusively(self._path(rollout_id, str(number)))
            except FileExistsError:
                continue  # another worker has just claimed this number
            return Claim(rollout_id, number, number - endings.count("returned"))

    def mark_returned(self, claim: Claim) -> None:
        """Report that the worker gave the attempt up on purpose, which says nothing against the rollout."""
        self._mark_ended(claim, "returned")

    def mark_failed(self, claim: Claim) -> None:
        """Report that the attempt failed without a finished record, and that it did not kill its worker."""
        self._mark_ended(claim, "failed")

    def record_outcome(self, outcome: Outcome) -> None:
        """Record the outcome, unless one is recorded already. Call it once the finished record is accepted.

        If two attempts end at the same moment, the outcome of either one stays. Both are right: outcomes only serve
        summaries, and the trainer decides by the records which attempt counts.
        """
        if self.is_done(outcome.rollout):
            return
        draft_path = self._path(outcome.rollout, f"{outcome.attempt}.outcome")
        try:
            draft_path.write_bytes(dump_json(asdict(outcome)))
            draft_path.rename(self._path(outcome.rollout, "done"))  # so that nobody reads a part of it
        except OSError as error:
            raise ClaimsError(f"{draft_path}: the outcome was not recorded: {error.strerror}.") from None

    def outcome(self, rollout_id: str) -> Outcome | None:
        """Return how a rollout ended; None if it has not ended, or its file is damaged."""
        return self._read_outcome(self._path(rollout_id, "done"))

    def new_outcomes(self, seen_names: set[str]) -> Iterator[Outcome]:
        """Yield the outcomes whose files are not in `seen_names`, and add the names of these files."""
        for entry in os.scandir(self._directory):
            if entry.name.endswith(".done") and entry.name not in seen_names:
                if (outcome := self._read_outcome(Path(entry.path))) is not None:
                    yield outcome
                seen_names.add(entry.name)

    def _read_outcome(self, path: Path) -> Outcome | None:
        """Return the outcome in a file; None if there is no such file, or if it is damaged: its rollout stays done."""
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
                    "an outcome is damaged: its rollout is done, and is not in the summary",
                    file=str(path),
                    error=error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error),
                )
            return None
        return outcome

    def _attempt_endings(self, rollout_id: str) -> Iterator[str | None]:
        """Yield for each attempt that started how it ended; None without a report."""
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
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            # If a number were used again after a power cut, the records of two attempts would be mixed.
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
        readable_name = quote(rollout_id, safe="", errors="replace")[:100]
        digest = hashlib.blake2b(rollout_id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return self._directory / f"{readable_name}-{digest}.{suffix}"
