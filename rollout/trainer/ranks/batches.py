"""Gives each rank of a trainer its batches: the same number of steps and rows on every rank, balanced by tokens.

    with open_batches(url, groups_per_step=16, packing=32768) as batches:
        if checkpoint is not None:
            batches.load_state_dict(checkpoint["reader"])      # on every rank
        for step in batches:
            train(step.batch)
            batches.version = policy_version
            if time_to_save:
                save(weights, reader=batches.state_dict())     # the state of the first rank
                batches.commit()

The first rank of the process group reads all queues, one step ahead. It divides the samples of each step, and sends
each rank its part. Each rank makes its own tensors and pixels. Then all ranks agree that everything is there. So a step
begins on all ranks or on none, and an error on one rank is raised on all of them.
"""

import pickle
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from io import BytesIO
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from rollout.trainer.batches.advantages import Estimator, grpo
from rollout.trainer.batches.tensors import Batch, Credit, collate
from rollout.trainer.errors import RankError, ReaderStateError
from rollout.trainer.ranks.exchange import RankExchange
from rollout.trainer.ranks.messages import Kind, Message
from rollout.trainer.ranks.reading import ReadEnd, ReadState, StepOptions, StepPart, StepReader, StepSummary
from rollout.trainer.reading.settings import ReaderSettings

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from rollout.trainer.batches.materialize import Materializer

_WAITING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class RankStep(StepSummary):
    """One training step of one rank. All fields but `batch` are the same on every rank."""

    batch: Batch
    """This rank's samples. A rank without samples has rows of padding only."""


def open_batches(
    url: str | Mapping[str, float],
    process_group: "ProcessGroup | None" = None,
    *,
    groups_per_step: int = 16,
    packing: int | None = 32768,
    estimator: Estimator = grpo,
    credit: Credit = "outcome",
    max_length: int | None = None,
    materializer: "Materializer | None" = None,
    data_rank: int | None = None,
    settings: ReaderSettings | None = None,
    timeout: float = 1800.0,
    rank_timeout: float = 600.0,
) -> "RankBatches":
    """Return the batches of this rank. Call it on every rank of the group, and use the result in a `with` statement.

    Args:
        url: the URL of the trajectories queue, or the weight of each queue by URL. The number of groups of a queue is
            in proportion to its weight. Only the first rank of the group opens the queues.
        process_group: the ranks that train together; None: the default group. Without torch.distributed, there is one
            rank.
        groups_per_step: the number of groups of a step, on all ranks together, including failed groups.
        packing: the maximum number of tokens in a row. None: one row for each sample.
        estimator: the function that compares the rewards or the returns of a group.
        credit: the basis of a token's advantage; see `batch_of`.
        max_length: the maximum number of tokens of a sample; see `batch_of`.
        materializer: makes the pixels of this rank's images; None: no pixels.
        data_rank: the number of this rank's data. Ranks with the same number get the same batches, as the ranks of one
            tensor-parallel or context-parallel group need. None: the rank in the group.
        settings: the settings of the readers.
        timeout: the maximum seconds to wait for a group.
        rank_timeout: the maximum seconds that one rank may keep the others waiting. It must be longer than a training
            step with a checkpoint on the slowest rank, and longer than the estimator needs for the groups of a step.

    Raises:
        ConfigurationError: a weight is not a positive number.
    """
    weights = {url: 1.0} if isinstance(url, str) else url
    options = StepOptions(groups_per_step, packing, estimator, credit, max_length)
    return RankBatches(weights, process_group, options, materializer, data_rank, settings, timeout, rank_timeout)


class RankBatches:
    """The batches of one rank; `open_batches` makes it. Iterate over it once.

    Every rank gets the same number of steps. The iteration ends on all ranks when the queues have ended.

    Attributes:
        left_over: after the end, the number of groups that were too few for another step. They stay in the queues.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        process_group: "ProcessGroup | None",
        options: StepOptions,
        materializer: "Materializer | None",
        data_rank: int | None,
        settings: ReaderSettings | None,
        timeout: float,
        rank_timeout: float,
    ) -> None:
        self.left_over = 0
        self._weights, self._options, self._settings = weights, options, settings
        self._process_group, self._data_rank = process_group, data_rank
        self._materializer = materializer
        self._timeout, self._rank_timeout = timeout, rank_timeout
        self._version: int | None = None
        self._has_ended = False
        self._error: BaseException | None = None
        self._stack = ExitStack()
        self._exchange: RankExchange
        self._reader: StepReader | None = None
        self._data_ranks: dict[int, int] = {}
        self._current: ReadState | None = None
        self._saved: ReadState | None = None

    def __enter__(self) -> Self:
        self._exchange = RankExchange(self._process_group, self._rank_timeout)
        with ExitStack() as stack:
            try:
                if self._exchange.is_reading_rank:
                    self._reader = self._open_reader(stack)
                    self._current = self._reader.initial_state
                else:
                    self._exchange.tell(Message(Kind.HELLO, text=self._own_settings()))
                    self._exchange.listen()
            except BaseException as error:
                self._exchange.fail(error)
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                self._exchange.fail(error)
            elif self._has_ended:
                self._exchange.close()
            else:
                self._exchange.leave()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RankStep:
        """Return the next step.

        Raises:
            RankFailed: another rank has failed, has ended, or did not answer within `rank_timeout`.
            NothingArrived: on the reading rank, no whole group arrived within `timeout`.
            ReadingStalled: on the reading rank, the thread that reads the steps hangs for `rank_timeout`.
            MaterializeError: on this rank, the pixels of an image cannot be made.
            ImagesUnreadable: the reading rank cannot read the images; see `TrajectoryReader.receive`.
            SampleTooLong: a sample has more tokens than a row may have.
        """
        if self._error is not None:
            raise self._error
        try:
            step = None if self._has_ended else self._next_step()
        except BaseException as error:
            self._error = error
            self._exchange.fail(error)
            raise
        if step is None:
            self._has_ended = True
            raise StopIteration
        return step

    def state_dict(self) -> dict[str, Any]:
        """Return the state that contains all steps so far; save it atomically with the weights.

        Only the state of the first rank of the group can be loaded. The other ranks return a small value instead, so
        that a trainer may call this method on every rank.
        """
        if self._current is None:
            return {"saved_by_rank": self._exchange.rank}
        self._saved = self._current
        return dict(self._current.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; call it on every rank before the first step. The number of ranks may differ.

        Raises:
            ReaderStateError: the state was saved by another rank than the first, it is invalid, or it is too late.
        """
        if "saved_by_rank" in state:
            raise ReaderStateError(
                f"the state was saved by rank {state['saved_by_rank']}, but only the first rank of the process group "
                "reads the queues. Save the result of state_dict() on that rank."
            )
        if self._reader is not None:
            self._reader.load(state)
            self._current = self._reader.initial_state

    def commit(self) -> None:
        """Ack the records in the last state; call it when this state is safely stored. Other ranks may call it, too.

        Raises:
            LeaseLost: the lease of some records has ended, so another process may read the queue now.
        """
        if self._reader is not None and self._saved is not None:
            self._reader.commit(self._saved.commit_numbers)

    @property
    def packing(self) -> int | None:
        """The maximum number of tokens in a row; None: each sample has a row of its own."""
        return self._options.packing

    @property
    def data_rank(self) -> int | None:
        """The number of this rank's data, as it was given to `open_batches`."""
        return self._data_rank

    @property
    def ranks(self) -> int:
        """The number of ranks that train together. It is known inside the `with` block."""
        return self._exchange.size

    @property
    def version(self) -> int | None:
        """The trainer's policy version. Set it after each update; the reading rank needs it to compute staleness."""
        return self._version

    @version.setter
    def version(self, version: int | None) -> None:
        self._version = version
        if self._reader is not None:
            self._reader.set_version(version)

    def _open_reader(self, stack: ExitStack) -> StepReader:
        """Check the settings of all ranks, open the queues, and tell the others to continue."""
        settings_by_rank = {0: orjson.loads(self._own_settings())} | {
            rank: orjson.loads(message.text) for rank, message in self._exchange.gather().items()
        }
        try:
            self._data_ranks = check_settings(settings_by_rank)
        except RankError as error:
            self._exchange.tell(Message(Kind.REFUSED, text=str(error)))
            raise
        reader = StepReader(
            self._weights,
            self._options,
            parts=len(set(self._data_ranks.values())),
            settings=self._settings,
            timeout=self._timeout,
            stall_timeout=self._rank_timeout,
        )
        stack.enter_context(reader)
        self._exchange.tell(Message(Kind.GO))
        return reader

    def _own_settings(self) -> str:
        """Return the settings that this rank and the reading rank must agree on, as JSON."""
        settings = {
            "data_rank": self._exchange.rank if self._data_rank is None else self._data_rank,
            "groups_per_step": self._options.groups_per_step,
            "packing": self._options.packing,
            "credit": self._options.credit,
            "max_length": self._options.max_length,
            "materializer": self._materializer is not None,
        }
        return orjson.dumps(settings).decode()

    def _next_step(self) -> RankStep | None:
        """Return the next step when it is ready on all ranks; None if the queues have ended."""
        return self._receive_step() if self._reader is None else self._read_step(self._reader)

    def _read_step(self, reader: StepReader) -> RankStep | None:
        """On the reading rank: divide the next step, and let all ranks begin it."""
        self._exchange.gather()
        while (item := reader.receive(_WAITING_SECONDS)) is None:
            self._exchange.tell(Message(Kind.WAITING))
        if isinstance(item, ReadEnd):
            self._exchange.tell(Message(Kind.ENDED, item.left_over))
            self._current, self.left_over = item.after, item.left_over
            return None
        others = {rank: number for rank, number in self._data_ranks.items() if rank != self._exchange.rank}
        frames = {number: _pickled(item.parts[number]) for number in set(others.values())}
        self._exchange.hand_out({rank: frames[number] for rank, number in others.items()})
        del frames
        step = self._make_step(item.parts[self._data_ranks[self._exchange.rank]])
        self._exchange.gather()
        self._exchange.tell(Message(Kind.GO))
        self._current = item.after
        return step

    def _receive_step(self) -> RankStep | None:
        """On another rank: take the part of the next step, and begin the step when all ranks are ready."""
        self._exchange.tell(Message(Kind.READY))
        message = self._exchange.listen()
        if message.kind is Kind.ENDED:
            self.left_over = message.number
            return None
        step = self._make_step(pickle.loads(self._exchange.receive_part(message)))  # noqa: S301 - from the first rank
        self._exchange.tell(Message(Kind.READY))
        self._exchange.listen()
        return step

    def _make_step(self, part: StepPart) -> RankStep:
        batch = collate(
            part.samples,
            advantages=part.advantages,
            packing=self._options.packing,
            min_rows=part.rows,
            materializer=self._materializer,
        )
        summary = {field.name: getattr(part.summary, field.name) for field in fields(part.summary)}
        return RankStep(**summary, batch=batch)


def check_settings(settings_by_rank: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """Return the data rank of each rank.

    Raises:
        RankError: the ranks have different settings, or the data ranks do not fit.
    """
    data_ranks = {rank: int(settings["data_rank"]) for rank, settings in settings_by_rank.items()}
    first = settings_by_rank[0]
    for rank, settings in settings_by_rank.items():
        for name, value in settings.items():
            if name != "data_rank" and value != first[name]:
                raise RankError(
                    f"open_batches(): `{name}` is {value!r} on rank {rank}, but {first[name]!r} on rank 0. Pass the "
                    "same arguments on every rank."
                )
    counts = Counter(data_ranks.values())
    if sorted(counts) != list(range(len(counts))) or len(set(counts.values())) != 1:
        listed = ", ".join(f"rank {rank}: {number}" for rank, number in data_ranks.items())
        raise RankError(
            f"open_batches(): the values of `data_rank` do not fit ({listed}). Number the data from 0 without gaps, "
            "and give each number to equally many ranks."
        )
    return data_ranks


def _pickled(part: StepPart) -> memoryview:
    file = BytesIO()
    pickle.dump(part, file, protocol=pickle.HIGHEST_PROTOCOL)
    return file.getbuffer()
