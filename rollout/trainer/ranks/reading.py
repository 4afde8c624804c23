"""Reads whole steps ahead on the reading rank, in a thread, and divides each step among the ranks."""

import logging
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from rollout.trainer.batches.advantages import Estimator
from rollout.trainer.batches.samples import TrainingSample
from rollout.trainer.batches.tensors import Credit, pack_rows, samples_with_advantages
from rollout.trainer.blocking import BlockingReader
from rollout.trainer.errors import NothingArrived, ReaderStateError
from rollout.trainer.ranks.balancing import balance
from rollout.trainer.ranks.mixing import QueueMix
from rollout.trainer.reading.groups import Group
from rollout.trainer.reading.settings import ReaderSettings
from transports.redaction import hide_passwords

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
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
    """The number of tokens that train."""
    reward: float
    """The mean reward of the trajectories that train."""
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
    """The state that contains all steps, also those that had nothing to train."""


class StepReader:
    """Reads steps ahead. Use it in a `with` statement; reading starts with the first `receive`.

    Args:
        weights: the weight of each queue, by URL.
        options: how groups become steps.
        parts: the number of parts that each step is divided into.
        settings: the settings of the readers.
        timeout: the maximum seconds to wait for a group.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        options: StepOptions,
        *,
        parts: int,
        settings: ReaderSettings | None,
        timeout: float,
    ) -> None:
        self._options, self._part_count, self._timeout = options, parts, timeout
        self._names = {url: hide_passwords(url) for url in weights}
        self._mix = QueueMix({self._names[url]: weight for url, weight in weights.items()})
        self._readers = {name: BlockingReader(url, settings=settings) for url, name in self._names.items()}
        self._step_number = 0
        self._after: ReadState
        self._read_ahead: Queue[ReadStep | ReadEnd | Exception] = Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step-reader", daemon=True)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for reader in self._readers.values():
                stack.enter_context(reader)
            self._after = self._capture_state()
            stack.callback(self._stop_thread)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def receive(self, timeout: float) -> ReadStep | ReadEnd | None:
        """Return the next step, or the end; None after `timeout` seconds. Raises the errors of the reading thread."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            item = self._read_ahead.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, Exception):
            raise item
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

    def _stop_thread(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        """Read steps until the end, an error, or the close."""
        try:
            while not self._stop.is_set():
                item = self._read_step()
                if item is None or not self._hand_over(item) or isinstance(item, ReadEnd):
                    return
        except Exception as error:  # noqa: BLE001 - `receive` raises it
            self._hand_over(error)

    def _hand_over(self, item: ReadStep | ReadEnd | Exception) -> bool:
        """Wait until there is room for the item; return False if the reader is closed before."""
        while not self._stop.is_set():
            try:
                self._read_ahead.put(item, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False

    def _read_step(self) -> ReadStep | ReadEnd | None:
        """Return the next step that has tokens to train, or the end; None if the reader is closed."""
        options = self._options
        while (groups := self._read_groups()) is not None:
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
            samples, advantages = samples_with_advantages(
                groups, estimator=options.estimator, credit=options.credit, max_length=options.max_length
            )
            self._step_number += bool(samples)
            self._after = self._capture_state()
            if samples:
                summary = _summarise(self._step_number, groups, samples)
                return ReadStep(summary, self._divide(summary, samples, advantages), self._after)
        return None

    def _read_groups(self) -> list[Group] | None:
        """Return the groups of a step, or fewer if the queues have ended; None if the reader is closed."""
        groups: list[Group] = []
        deadline = time.monotonic() + self._timeout
        while len(groups) < self._options.groups_per_step and not self._mix.is_empty:
            if self._stop.is_set():
                return None
            name = self._mix.next_queue()
            reader = self._readers[name]
            if (group := reader.receive_group(timeout=_POLL_SECONDS)) is not None:
                groups.append(group)
                self._mix.count_group(name)
                deadline = time.monotonic() + self._timeout
            elif reader.ended:
                self._mix.remove(name)
                if not self._mix.is_empty:
                    log.info("%s has ended; the other queues share its part", name)
            elif time.monotonic() > deadline:
                raise NothingArrived(
                    f"{name}: no whole group came within {self._timeout:g} s ({reader.stats()}). Check that the "
                    "workers are running, or raise the `timeout` of open_batches()."
                )
        return groups

    def _divide(
        self, summary: StepSummary, samples: Sequence[TrainingSample], advantages: Sequence[float | npt.NDArray[Any]]
    ) -> tuple[StepPart, ...]:
        """Divide the samples, so that the parts have about equally many tokens and exactly equally many rows."""
        packing = self._options.packing
        max_rows = -(-len(samples) // self._part_count)
        lengths = [len(sample.token_ids) for sample in samples]
        shares = balance(lengths, self._part_count, max_items=max_rows if packing is None else None)
        samples_by_part = [tuple(samples[at] for at in share) for share in shares]
        rows = max_rows if packing is None else max(len(pack_rows(part, packing)) for part in samples_by_part)
        return tuple(
            StepPart(summary, part, tuple(advantages[at] for at in share), rows)
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
        reward=statistics.fmean(rewards),
        reward_std=statistics.stdev(rewards) if len(rewards) > 1 else 0.0,
        rewards={name: statistics.fmean(values) for name, values in named.items()},
        uniform_groups=sum(len(set(group_rewards)) == 1 for group_rewards in rewards_by_group),
        failed=sum(len(group.trajectories) for group in groups) - len(rewards),
        has_images=any(sample.images for sample in samples),
    )
