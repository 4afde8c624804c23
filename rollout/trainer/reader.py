"""The trainer's end of the queue: whole trajectories, each exactly once relative to the trainer's checkpoint.

    async with TrajectoryReader(queue) as reader:
        reader.load_state_dict(checkpoint["reader"])        # drops what the loaded weights have trained on
        while trajectory := await reader.receive(timeout=60):
            train(trajectory)
            if time_to_save:
                save(weights, reader=reader.state_dict())    # atomically, in one file
                await reader.commit()                        # only now may the queue forget

Delivery is at least once and may be disordered by redelivery. Records are kept by (rollout, attempt, seq) until an
attempt is whole; the first finished attempt wins, and every record of another one is dropped. Nothing is acked before
`commit`, and `commit` acks exactly what the last `state_dict` contains.
"""

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rollout.errors import RolloutError
from rollout.steps import (
    Record,
    RecordError,
    RolloutFinished,
    RolloutStarted,
    RolloutStatus,
    Step,
    StepsDigest,
    decode_record,
    header_of,
)
from rollout.trainer.trajectory import Trajectory, assemble
from transports import Delivery, Queue

_STATE_VERSION = 1
_REMEMBERED = 65_536
"""Consumed rollouts that are remembered below the watermarks, to drop what a stalled worker may still send."""

_POLL = 0.5


class ReaderStateError(RolloutError):
    """A reader state that cannot be loaded."""


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What a reader did since it was made."""

    trajectories: int
    records: int
    bytes: int
    dropped: int
    rejected: int
    unfinished: int


@dataclass(slots=True)
class _Attempt:
    started: RolloutStarted | None = None
    steps: dict[int, tuple[Step, Delivery]] = field(default_factory=dict)
    finished: RolloutFinished | None = None
    finished_at: float = 0.0
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return self.started is not None and self.finished is not None and len(self.steps) == self.finished.steps


class _Lane:
    """One ordered stream: its watermark is the position up to which everything that came was settled."""

    def __init__(self, watermark: int) -> None:
        self.watermark = watermark
        self._open: deque[int] = deque()
        self._settled: set[int] = set()

    def arrive(self, position: int) -> None:
        if position > (self._open[-1] if self._open else self.watermark):
            self._open.append(position)

    def settle(self, position: int) -> None:
        if position <= self.watermark:
            return
        self._settled.add(position)
        while self._open and self._open[0] in self._settled:
            self.watermark = self._open.popleft()
            self._settled.discard(self.watermark)


class TrajectoryReader:
    """Reads one queue for one trainer process. Use it as an async context manager, and iterate over it or `receive`."""

    def __init__(self, queue: Queue, *, gap_timeout: float = 30.0) -> None:
        self._queue = queue
        self._gap_timeout = gap_timeout
        self._lanes: dict[str, _Lane] = {}
        self._attempts: dict[str, dict[int, _Attempt]] = {}
        self._consumed: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._ready: deque[tuple[Trajectory, list[Delivery]]] = deque()
        self._settled: list[Delivery] = []
        self._covered: list[Delivery] = []
        self._records = self._bytes = self._dropped = self._rejected = self._trajectories = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._queue.aclose()

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Endlessly; leave the loop, or cancel it, to stop."""
        while True:
            if (trajectory := await self.receive(timeout=_POLL)) is not None:
                yield trajectory

    async def receive(self, *, timeout: float) -> Trajectory | None:
        """The next finished trajectory, whatever its status, or None when none was finished in time."""
        deadline = time.monotonic() + timeout
        while not self._ready:
            left = deadline - time.monotonic()
            delivery = await self._queue.receive(timeout=max(0.0, min(left, _POLL)))
            if delivery is not None:
                await self._take(delivery)
            self._give_up_on_gaps()
            if delivery is None and left <= 0:
                break
        return self._hand_out() if self._ready else None

    def state_dict(self) -> dict[str, Any]:
        """What the trainer has been given so far; save it atomically with the weights that were trained on it."""
        waiting = {trajectory.rollout for trajectory, _ in self._ready}
        self._covered += self._settled
        self._settled = []
        return {
            "version": _STATE_VERSION,
            "watermarks": {name: lane.watermark for name, lane in self._lanes.items()},
            "consumed": [
                [rollout, lane, position]
                for rollout, (lane, position) in self._consumed.items()
                if rollout not in waiting
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where a saved state ended. Raises ReaderStateError after records were read, or if it is not ours."""
        if self._records:
            raise ReaderStateError("load_state_dict comes before the first receive")
        if state.get("version") != _STATE_VERSION:
            raise ReaderStateError(f"the reader state has the version {state.get('version')!r}, not {_STATE_VERSION}")
        self._lanes = {name: _Lane(watermark) for name, watermark in state["watermarks"].items()}
        self._consumed = OrderedDict((rollout, (lane, position)) for rollout, lane, position in state["consumed"])

    async def commit(self) -> None:
        """Ack what the last `state_dict` covers. Call it once that state is safely stored."""
        covered, self._covered = self._covered, []
        if covered:
            await self._queue.ack(covered)

    def stats(self) -> ReaderStats:
        unfinished = sum(len(attempts) for attempts in self._attempts.values())
        return ReaderStats(self._trajectories, self._records, self._bytes, self._dropped, self._rejected, unfinished)

    async def _take(self, delivery: Delivery) -> None:
        self._records += 1
        self._bytes += delivery.nbytes
        lane = self._lanes.setdefault(delivery.lane, _Lane(-1))
        known = delivery.position <= lane.watermark
        lane.arrive(delivery.position)
        named = header_of(delivery.tag, delivery.key)
        rollout = named.rollout if named else None
        if known or rollout in self._consumed:
            self._drop(delivery)
            return
        try:
            record = decode_record(delivery.frames)
        except RecordError as error:
            await self._reject(delivery, rollout, error)
            return
        if record.header.rollout in self._consumed:
            self._drop(delivery)
        else:
            self._keep(record, delivery)

    def _keep(self, record: Record, delivery: Delivery) -> None:
        header = record.header
        attempt = self._attempts.setdefault(header.rollout, {}).setdefault(header.attempt, _Attempt())
        attempt.deliveries.append(delivery)
        match record:
            case RolloutStarted():
                attempt.started = record
            case Step():
                attempt.steps[header.seq] = (record, delivery)
            case RolloutFinished():
                attempt.finished, attempt.finished_at = record, time.monotonic()
        if attempt.whole:
            self._finish(header.rollout, _joined(attempt), delivery)

    def _finish(self, rollout: str, trajectory: Trajectory, last: Delivery) -> None:
        """The first finished attempt wins; from here on every other record of this rollout is dropped."""
        attempts = self._attempts.pop(rollout, {}).values()
        self._consumed[rollout] = (last.lane, last.position)
        self._ready.append((trajectory, [delivery for attempt in attempts for delivery in attempt.deliveries]))

    def _hand_out(self) -> Trajectory:
        trajectory, deliveries = self._ready.popleft()
        for delivery in deliveries:
            self._settle(delivery)
        self._forget()
        self._trajectories += 1
        return trajectory

    def _forget(self) -> None:
        while len(self._consumed) > _REMEMBERED:
            rollout, (lane, position) = next(iter(self._consumed.items()))
            if position > self._lanes[lane].watermark:
                return
            del self._consumed[rollout]

    def _give_up_on_gaps(self) -> None:
        """A gap is an error only once the finished record is there and a redelivery had time to close it."""
        patience = time.monotonic() - self._gap_timeout
        late = [
            (rollout, attempt)
            for rollout, attempts in self._attempts.items()
            for attempt in attempts.values()
            if attempt.finished is not None and attempt.finished_at < patience
        ]
        for rollout, attempt in late:
            if rollout in self._attempts and attempt.finished is not None:
                found = f"{len(attempt.steps)} of {attempt.finished.steps} steps"
                error = {"type": "LostRecords", "message": f"{found} arrived within {self._gap_timeout:g} s"}
                self._finish(rollout, _failed(attempt.finished.header, error), attempt.deliveries[-1])

    async def _reject(self, delivery: Delivery, rollout: str | None, error: RecordError) -> None:
        """A record that cannot be decoded makes its rollout a failed one, so that its group still completes."""
        self._rejected += 1
        await delivery.reject(str(error))
        self._lanes[delivery.lane].settle(delivery.position)
        known = [a for a in self._attempts.get(rollout or "", {}).values() if a.started is not None]
        if rollout is not None and known and known[-1].started is not None:
            failure = {"type": type(error).__name__, "message": str(error)}
            self._finish(rollout, _failed(known[-1].started.header, failure, known[-1].started), delivery)

    def _drop(self, delivery: Delivery) -> None:
        self._dropped += 1
        self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        self._lanes[delivery.lane].settle(delivery.position)
        self._settled.append(delivery)


def _joined(attempt: _Attempt) -> Trajectory:
    assert attempt.started is not None
    assert attempt.finished is not None
    ordered = [attempt.steps[seq] for seq in sorted(attempt.steps)]
    digest = StepsDigest()
    for _, delivery in ordered:
        digest.add(delivery.frames)
    finished = attempt.finished
    if digest.value() != finished.digest:
        error = {"type": "DigestMismatch", "message": "the steps that arrived are not the steps that were sent"}
        return _failed(finished.header, error, attempt.started)
    try:
        return assemble(attempt.started, [step for step, _ in ordered], finished)
    except RecordError as error:
        return _failed(finished.header, {"type": "RecordError", "message": str(error)}, attempt.started)


def _failed(header: Any, error: Mapping[str, str], started: RolloutStarted | None = None) -> Trajectory:
    return Trajectory(
        run=header.run,
        environment=header.environment,
        group=header.group,
        rollout=header.rollout,
        attempt=header.attempt,
        status=RolloutStatus.FAILED,
        reward=None,
        error=error,
        started=started,
    )
