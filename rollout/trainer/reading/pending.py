"""Collects the records of each rollout until one of its attempts has all of its records. That attempt is used.

A finished rollout stays here until the trainer gets it; its steps are in memory or on disk. Records of its other
attempts may still arrive. They are settled together with the rollout.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from rollout.records.endings import RolloutStatus
from rollout.records.kinds import Record, RecordError, RecordHeader, RolloutFinished, RolloutStarted, Step, StepsDigest
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.reading.spill import StepStore, StoredStep
from rollout.trainer.trajectory import Trajectory, assemble
from transports import Frames

RecordKey = tuple[str, int]
"""The lane and the position of a record."""


@dataclass(slots=True, eq=False)
class _PendingAttempt:
    header: RecordHeader
    started: RolloutStarted | None = None
    steps: dict[int, StoredStep] = field(default_factory=dict)
    finished: RolloutFinished | None = None
    last_record_at: float = 0.0
    """When its latest record arrived, on a clock that counts only the seconds in which the reader waits for records."""

    @property
    def whole(self) -> bool:
        """Whether all records of the attempt have arrived."""
        return self.started is not None and self.finished is not None and len(self.steps) == self.finished.steps

    def problem(self, now: float, *, gap_timeout: float, unfinished_timeout: float) -> Mapping[str, str] | None:
        """Return an error if the reader has waited too long for missing records; otherwise None."""
        silence = now - self.last_record_at
        if self.finished is not None and silence > gap_timeout:
            missing_start = "" if self.started is not None else "; the start record is missing"
            message = f"only {len(self.steps)} of {self.finished.steps} steps arrived{missing_start}"
            return {"type": "LostRecords", "message": message}
        if self.finished is None and silence > unfinished_timeout:
            return {"type": "Unfinished", "message": f"no record arrived after {len(self.steps)} steps"}
        return None


@dataclass(slots=True, eq=False)
class PendingRollout:
    """A rollout that the trainer has not received yet."""

    header: RecordHeader
    """The header of the record that arrived first."""
    attempts: dict[int, _PendingAttempt] = field(default_factory=dict)
    """The attempts that have records, by number."""
    record_keys: list[RecordKey] = field(default_factory=list)
    """The keys of the records to settle when the rollout is consumed."""
    whole_attempt: _PendingAttempt | None = None
    """The first attempt that has all of its records; None if there is none yet."""
    error: Mapping[str, str] | None = None
    """The error if the reader failed the rollout, because no attempt is whole; otherwise None."""

    @property
    def identity(self) -> str:
        """The name of the rollout, unique in the run."""
        return self.header.identity

    @property
    def group_identity(self) -> str:
        """The name of its group, unique in the run."""
        return self.header.group_identity

    @property
    def group_size(self) -> int | None:
        """The number of rollouts in its group; None if it is unknown because no start record has arrived."""
        starts = (attempt.started for attempt in self.attempts.values())
        return next((started.group_size for started in starts if started is not None), None)

    @property
    def done(self) -> bool:
        """Whether the rollout is complete or failed, so that the trainer can get it."""
        return self.whole_attempt is not None or self.error is not None

    @property
    def best_attempt(self) -> _PendingAttempt:
        """The whole attempt; if there is none, the latest attempt that has its start record, or the latest of all."""
        return self.whole_attempt or max(
            self.attempts.values(), key=lambda attempt: (attempt.started is not None, attempt.header.attempt)
        )


class PendingRollouts:
    """Holds all rollouts that have records and that the trainer has not received."""

    def __init__(self, step_store: StepStore, settings: ReaderSettings) -> None:
        self._step_store = step_store
        self._timeouts = {"gap_timeout": settings.gap_timeout, "unfinished_timeout": settings.unfinished_timeout}
        self._assemble = partial(
            assemble,
            train_auxiliary_roots=settings.train_auxiliary_roots,
            train_constrained_turns=settings.train_constrained_turns,
        )
        self._rollouts: dict[str, PendingRollout] = {}

    def unfinished(self) -> list[PendingRollout]:
        """Return the rollouts that are not done; may be called from any thread."""
        # The copy prevents an error if the event loop adds a rollout at the same time.
        return [rollout for rollout in list(self._rollouts.values()) if not rollout.done]

    def __contains__(self, identity: str) -> bool:
        return identity in self._rollouts

    def in_group(self, group_identity: str) -> list[PendingRollout]:
        """Return the pending rollouts of a group."""
        return [rollout for rollout in self._rollouts.values() if rollout.group_identity == group_identity]

    def add(self, record: Record, frames: Frames, key: RecordKey, now: float) -> PendingRollout | None:
        """Add a record. If it completes its rollout, return the rollout; otherwise return None."""
        rollout, attempt = self._get_or_create_attempt(record.header, key)
        if rollout.done:
            return None
        attempt.last_record_at = now
        match record:
            case RolloutStarted():
                attempt.started = record
            case Step() if record.header.seq not in attempt.steps:
                attempt.steps[record.header.seq] = self._step_store.add(frames, record)
            case RolloutFinished():
                attempt.finished = record
        if not attempt.whole:
            return None
        rollout.whole_attempt = attempt
        self._drop_steps(other_attempt for other_attempt in rollout.attempts.values() if other_attempt is not attempt)
        return rollout

    def mark_failed(self, header: RecordHeader, key: RecordKey, error: RecordError) -> PendingRollout | None:
        """Fail a rollout because a record cannot be decoded. Return the rollout, or None if it was already done."""
        rollout, _ = self._get_or_create_attempt(header, key)
        if rollout.done:
            return None
        rollout.error = {"type": type(error).__name__, "message": str(error)}
        return rollout

    def fail_stalled(self, now: float) -> list[PendingRollout]:
        """Fail each rollout if the reader has waited too long for all of its attempts; return these rollouts."""
        failed = []
        for rollout in self._rollouts.values():
            if rollout.done:
                continue
            if all(attempt.problem(now, **self._timeouts) for attempt in rollout.attempts.values()):
                rollout.error = rollout.best_attempt.problem(now, **self._timeouts)
                failed.append(rollout)
        return failed

    def build_trajectory(self, rollout: PendingRollout) -> Trajectory:
        """Return the trajectory of a rollout that is done. This does not remove the rollout."""
        attempt = rollout.best_attempt
        if rollout.whole_attempt is None or attempt.started is None or attempt.finished is None:
            return self._partial_trajectory(attempt, rollout.error or {})
        digest, steps = StepsDigest(), []
        for seq in sorted(attempt.steps):
            frames, step = self._step_store.read(attempt.steps[seq])
            digest.add(frames)
            steps.append(step)
        if digest.digest() != attempt.finished.digest:
            error = {"type": "DigestMismatch", "message": "the steps that arrived differ from those that were sent"}
            return _failed_trajectory(attempt, error)
        try:
            return self._assemble(attempt.started, steps, attempt.finished)
        except RecordError as error:
            return _failed_trajectory(attempt, {"type": type(error).__name__, "message": str(error)})

    def remove(self, rollout: PendingRollout) -> list[RecordKey]:
        """Remove a rollout; return the keys of its records, so that the caller can settle them."""
        del self._rollouts[rollout.identity]
        self._drop_steps(rollout.attempts.values())
        return rollout.record_keys

    def _get_or_create_attempt(self, header: RecordHeader, key: RecordKey) -> tuple[PendingRollout, _PendingAttempt]:
        rollout = self._rollouts.get(header.identity)
        if rollout is None:
            rollout = self._rollouts[header.identity] = PendingRollout(header)
        rollout.record_keys.append(key)
        attempt = rollout.attempts.get(header.attempt)
        if attempt is None:
            attempt = rollout.attempts[header.attempt] = _PendingAttempt(header)
        return rollout, attempt

    def _partial_trajectory(self, attempt: _PendingAttempt, error: Mapping[str, str]) -> Trajectory:
        """Return a failed trajectory with the steps before the first missing step. It never trains; people read it."""
        if attempt.started is None:
            return _failed_trajectory(attempt, error)
        steps: list[Step] = []
        while (stored_step := attempt.steps.get(attempt.started.header.seq + 1 + len(steps))) is not None:
            steps.append(self._step_store.read(stored_step)[1])
        header = attempt.started.header
        finished = RolloutFinished(header, RolloutStatus.FAILED, None, {}, error, len(steps), b"", 0.0)
        try:
            return self._assemble(attempt.started, steps, finished)
        except RecordError:
            return _failed_trajectory(attempt, error)

    def _drop_steps(self, attempts: Iterable[_PendingAttempt]) -> None:
        for attempt in attempts:
            for stored_step in attempt.steps.values():
                self._step_store.drop(stored_step)
            attempt.steps = {}


def _failed_trajectory(attempt: _PendingAttempt, error: Mapping[str, str]) -> Trajectory:
    """Return a failed trajectory without steps."""
    header = attempt.header
    return Trajectory(
        run=header.run,
        environment=header.environment,
        group=header.group,
        rollout=header.rollout,
        attempt=header.attempt,
        status=RolloutStatus.FAILED,
        reward=None,
        error=error,
        started=attempt.started,
    )
