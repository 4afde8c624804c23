"""Reads whole steps ahead on the reading rank, in a thread, and divides each step among the ranks."""

import logging
import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from rollout.trainer.batches.advantages import Estimator
from rollout.trainer.batches.samples import TrainingSample
from rollout.trainer.batches.tensors import Credit, pack_rows, samples_with_advantages
from rollout.trainer.blocking import BlockingReader
from rollout.trainer.errors import NothingArrived, ReaderStateError, ReadingStalled
from rollout.trainer.ranks.balancing import balance, balance_rows
from rollout.trainer.ranks.mixing import QueueMix
from rollout.trainer.reading.groups import Group
from rollout.trainer.reading.settings import ReaderSettings
from transports.redaction import hide_passwords

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_ASK_ENDED_SECONDS = 2.0
"""The time between two questions to an ended queue whether its launch was resumed."""
_STOP_SECONDS = 10.0
"""The time that a thread has to stop at the close."""
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Says how groups become the steps of several ranks; `open_batches` explains the fields."""

    groups_per_step: int
    """The number of groups of a step, on all ranks together."""
    packing: int | None
    """The maximum number of tokens in a row."""
    estimator: Estimator
    """The function that compares the rewards of a group."""
    credit: Credit
    """The basis of a token's advantage."""
    max_length: int | None
    """The maximum number of tokens of a sample."""


@dataclass(frozen=True, slots=True)
class StepSummary:
    """Describes a step on all ranks together."""

    number: int
    """The number of the step; the first is 1."""
    groups: tuple[str, ...]
    """The ids of the groups."""
    samples: int
    """The number of samples."""
    trained_tokens: int
    """The number of tokens that train; 0 if every rollout failed. Divide the loss by it, and not by that of a rank."""
    reward: float
    """The mean reward of the trajectories that train; NaN if none does."""
    reward_std: float
    """The standard deviation of these rewards, with n - 1 in the denominator; 0 for one reward."""
    rewards: Mapping[str, float]
    """The mean of each named reward of these trajectories, without its weight. Empty if the rewards have no names."""
    uniform_groups: int
    """The number of groups with something to train, but with equal rewards."""
    failed: int
    """The number of trajectories that do not train: they failed, have no score, or are held back."""
    has_images: bool
    """Whether a sample has an image."""


@dataclass(frozen=True, slots=True)
class StepPart:
    """The part of a step that the ranks with the same data get."""

    summary: StepSummary
    """The step that this is a part of."""
    samples: tuple[TrainingSample, ...]
    """The samples of this part."""
    advantages: tuple[float | npt.NDArray[Any], ...]
    """For each sample, the advantage that `collate` takes."""
    rows: int
    """The number of rows of every rank's batch."""


@dataclass(frozen=True, slots=True)
class ReadState:
    """The state after a step, and the numbers that `BlockingReader.commit` needs for it."""

    state: dict[str, Any]
    """The state of the mix and of all readers, to save with the weights."""
    commit_numbers: Mapping[str, int]
    """For each queue, the number of its reader's state."""


@dataclass(frozen=True, slots=True)
class ReadStep:
    """A step that was read ahead."""

    summary: StepSummary
    """What the step contains, on all ranks together."""
    parts: tuple[StepPart, ...]
    """The parts of the step, by the number of the data."""
    after: ReadState
    """The state that contains this step and all earlier ones."""


@dataclass(frozen=True, slots=True)
class ReadEnd:
    """The end of all queues."""

    left_over: int
    """The number of groups in the last, incomplete step. They are not consumed."""
    after: ReadState
    """The state that contains all steps."""


class StepReader:
    """Reads one step ahead. Use it in a `with` statement; reading starts with the first `receive`.

    Args:
        weights: the weight of each queue, by URL.
        options: how groups become steps.
        parts: the number of parts that each step is divided into.
        settings: the settings of the readers.
        timeout: the maximum seconds to wait for a group.
        stall_timeout: the maximum seconds that the reading thread may spend on one piece of work.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        options: StepOptions,
        *,
        parts: int,
        settings: ReaderSettings | None,
        timeout: float,
        stall_timeout: float,
    ) -> None:
        self._options, self._part_count = options, parts
        self._timeout, self._stall_timeout = timeout, stall_timeout
        self._names = {url: hide_passwords(url) for url in weights}
        self._mix = QueueMix({self._names[url]: weight for url, weight in weights.items()})
        self._readers = {name: BlockingReader(url, settings=settings) for url, name in self._names.items()}
        self._ask_again_at: dict[str, float] = {}
        """For each queue that has ended, the time of the next question."""
        self._step_number = 0
        self._after: ReadState
        self._wanted = threading.Semaphore(1)
        """Counts the steps that the thread may begin to read."""
        self._read_ahead: SimpleQueue[ReadStep | ReadEnd | BaseException] = SimpleQueue()
        self._work: tuple[str, float]
        """What the thread does, and since when."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step-reader", daemon=True)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for reader in self._readers.values():
                stack.enter_context(reader)
            self._after = self._capture_state()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread_stops():
            self._stack.close()
            return
        # The readers may hang, too.
        closing = threading.Thread(target=self._stack.close, name="step-reader-close", daemon=True)
        closing.start()
        closing.join(_STOP_SECONDS)
        log.warning("the thread that reads the steps does not stop: for %.0f s, it %s", *self._current_work())

    def receive(self, timeout: float) -> ReadStep | ReadEnd | None:
        """Return the next step, or the end; None after `timeout` seconds.

        Raises:
            ReadingStalled: the reading thread hangs. This method also raises the errors of that thread.
        """
        if self._thread.ident is None:
            self._begin("starts")
            self._thread.start()
        try:
            item = self._read_ahead.get(timeout=timeout)
        except Empty:
            seconds, work = self._current_work()
            if seconds > self._stall_timeout:
                raise ReadingStalled(
                    f"the thread that reads the steps hangs: for {seconds:.0f} s, it {work}. Find out what blocks it. "
                    "If this work is only slow, raise the `rank_timeout` of open_batches()."
                ) from None
            return None
        if isinstance(item, BaseException):
            raise item
        # Not earlier, so that the thread never holds a second step. The time of its work begins here, because the
        # thread may get the processor only later.
        self._begin("starts")
        self._wanted.release()
        return item

    @property
    def initial_state(self) -> ReadState:
        """The state before the first step. Ask for it before the first `receive`."""
        return self._after

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ReaderStateError: reading has started, the state is damaged, or it contains another queue.
        """
        if self._thread.ident is not None:
            raise ReaderStateError("Call load_state_dict() before you take the first step from the batches.")
        if state.get("version") != _STATE_VERSION or "readers" not in state:
            raise ReaderStateError(
                "this is not a state of open_batches() of this release. Load what its state_dict() returned."
            )
        try:
            readers = {str(name): dict(reader_state) for name, reader_state in state["readers"].items()}
            credits_by_name = {str(name): float(value) for name, value in state["mix"].items()}
            step_number = int(state["step"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReaderStateError(f"the state is damaged: {error!r}. Load an earlier checkpoint.") from error
        if len(readers) == len(self._readers) == 1:
            readers = dict(zip(self._readers, readers.values(), strict=True))  # the queue may have another URL now
        if missing := readers.keys() - self._readers.keys():
            raise ReaderStateError(
                f"the state contains the queue {', '.join(sorted(missing))}, which is not open. Pass the same queues "
                "to open_batches() as before. A queue that has ended may stay."
            )
        for name, reader_state in readers.items():
            self._readers[name].load_state_dict(reader_state)
        self._mix.load(credits_by_name)
        self._step_number = step_number
        self._after = self._capture_state()

    def commit(self, numbers: Mapping[str, int]) -> None:
        """Ack the records of the states with these numbers. Raises LeaseLost."""
        for name, number in numbers.items():
            self._readers[name].commit(number)

    def set_version(self, version: int | None) -> None:
        """Tell the readers the trainer's policy version."""
        for reader in self._readers.values():
            reader.version = version

    def _thread_stops(self) -> bool:
        """Stop the thread; return False if it hangs."""
        self._stop.set()
        self._wanted.release()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _begin(self, work: str) -> None:
        """Remember what the thread does from now on."""
        self._work = (work, time.monotonic())

    def _current_work(self) -> tuple[float, str]:
        """Return for how many seconds the thread has done its current work, and what this is."""
        work, since = self._work
        return time.monotonic() - since, work

    def _run(self) -> None:
        """Read a step whenever one is wanted, until the end, an error, or the close."""
        try:
            while not self._stop.is_set():
                if not self._wanted.acquire(timeout=_POLL_SECONDS):
                    continue
                if (item := self._read_step()) is None:
                    return
                self._read_ahead.put(item)
                if isinstance(item, ReadEnd):
                    return
        except BaseException as error:  # noqa: BLE001 - `receive` raises it
            self._read_ahead.put(error)

    def _read_step(self) -> ReadStep | ReadEnd | None:
        """Return the next step, or the end; None if the reader is closed."""
        options = self._options
        if (groups := self._read_groups()) is None:
            return None
        if len(groups) < options.groups_per_step:
            if groups:
                log.warning(
                    "the queues have ended; the last %d groups are less than a step of %d, and stay in the queues",
                    len(groups),
                    options.groups_per_step,
                )
            else:
                self._after = self._capture_state()  # with the end of the run, so that a commit empties the queues
            return ReadEnd(len(groups), self._after)
        self._begin("computes the advantages")
        samples, advantages = samples_with_advantages(
            groups, estimator=options.estimator, credit=options.credit, max_length=options.max_length
        )
        self._step_number += 1
        self._begin("captures the state of the readers")
        self._after = self._capture_state()
        self._begin("divides a step among the ranks")
        summary = _summarise(self._step_number, groups, samples)
        return ReadStep(summary, self._divide(summary, samples, advantages), self._after)

    def _read_groups(self) -> list[Group] | None:
        """Return the groups of a step, or fewer if the queues have ended; None if the reader is closed."""
        groups: list[Group] = []
        deadline = time.monotonic() + self._timeout
        while len(groups) < self._options.groups_per_step and (choice := self._choose_queue()) is not None:
            if self._stop.is_set():
                return None
            name, wait_seconds = choice
            reader = self._readers[name]
            self._begin(f"reads {name}")
            group = reader.receive_group(timeout=wait_seconds)
            if group is None and reader.ended:
                self._note_end(name)
                continue
            if name in self._mix.paused:
                self._mix.resume(name)
                log.info("%s has more groups, and gets its part again", name)
            if group is not None:
                groups.append(group)
                self._mix.count_group(name)
                deadline = time.monotonic() + self._timeout
            elif time.monotonic() > deadline:
                raise NothingArrived(
                    f"{name}: no whole group came within {self._timeout:g} s. Check that the workers are running, or "
                    f"raise the `timeout` of open_batches(). {reader.describe_wait()}"
                )
        return groups

    def _choose_queue(self) -> tuple[str, float] | None:
        """Return the queue to read and the seconds to wait for a group; None if all queues have ended."""
        now = time.monotonic()
        for name in self._names.values():
            if name in self._mix.paused and now >= self._ask_again_at[name]:
                return name, 0.0
        return None if self._mix.is_empty else (self._mix.next_queue(), _POLL_SECONDS)

    def _note_end(self, name: str) -> None:
        """Pause a queue that has ended, and ask it again later, because its launch may be resumed."""
        self._ask_again_at[name] = time.monotonic() + _ASK_ENDED_SECONDS
        if name in self._mix.paused:
            return
        self._mix.pause(name)
        if not self._mix.is_empty:
            log.info("%s has ended; the other queues share its part", name)
            return
        # The end is valid only if all queues have ended at the same time.
        for other in self._mix.paused - {name}:
            self._ask_again_at[other] = 0.0

    def _divide(
        self, summary: StepSummary, samples: Sequence[TrainingSample], advantages: Sequence[float | npt.NDArray[Any]]
    ) -> tuple[StepPart, ...]:
        """Divide the samples, so that the parts have about equally many tokens and exactly equally many rows."""
        packing = self._options.packing
        lengths = [len(sample.token_ids) for sample in samples]
        shares = (balance_rows if packing is None else balance)(lengths, self._part_count)
        samples_by_part = [tuple(samples[at] for at in share) for share in shares]
        rows = (len(part) if packing is None else len(pack_rows(part, packing)) for part in samples_by_part)
        row_count = max(1, *rows)
        return tuple(
            StepPart(summary, part, tuple(advantages[at] for at in share), row_count)
            for part, share in zip(samples_by_part, shares, strict=True)
        )

    def _capture_state(self) -> ReadState:
        """Return the state that contains everything that was read."""
        readers = {name: reader.state_dict() for name, reader in self._readers.items()}
        return ReadState(
            {"version": _STATE_VERSION, "step": self._step_number, "mix": self._mix.state(), "readers": readers},
            {name: int(state["number"]) for name, state in readers.items()},
        )


def _summarise(number: int, groups: Sequence[Group], samples: Sequence[TrainingSample]) -> StepSummary:
    trained = [[member for member in group.trajectories if member.trainable] for group in groups]
    rewards_by_group = [[float(member.reward or 0.0) for member in members] for members in trained if members]
    rewards = [reward for group_rewards in rewards_by_group for reward in group_rewards]
    named: dict[str, list[float]] = {}
    for members in trained:
        for member in members:
            for name, reward in member.rewards.items():
                named.setdefault(name, []).append(reward.value)
    return StepSummary(
        number=number,
        groups=tuple(group.id for group in groups),
        samples=len(samples),
        trained_tokens=sum(int(sample.mask.sum()) for sample in samples),
        reward=statistics.fmean(rewards) if rewards else math.nan,
        reward_std=statistics.stdev(rewards) if len(rewards) > 1 else 0.0,
        rewards={name: statistics.fmean(values) for name, values in named.items()},
        uniform_groups=sum(len(set(group_rewards)) == 1 for group_rewards in rewards_by_group),
        failed=sum(len(group.trajectories) for group in groups) - len(rewards),
        has_images=any(sample.images for sample in samples),
    )
