"""Provides a torch dataset of batches, each trained exactly once. A `DataLoader` can read it in several processes.

    dataset = TrajectoryDataset(url, partial(batch_of, packing=32768), groups_per_batch=8)
    dataset.load_state_dict(checkpoint["reader"])
    for portion in DataLoader(dataset, batch_size=None, num_workers=2, in_order=False):
        train(portion.batch)
        dataset.trained(portion)
        if time_to_save:
            save(weights, reader=dataset.state_dict())    # contains trained portions, not those that were read ahead
            dataset.commit()
    dataset.close()                                       # the loader's processes release their partitions

A loader reads more than was trained. Therefore each portion contains the state from which a reader must continue after
the portion was trained. Each process of the loader reads its own partitions of the queue, as a rank does. Use
`in_order=False`. Otherwise, the loader waits for each process in turn, even if the partitions of a process are empty.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from rollout.errors import RolloutError
from rollout.trainer.blocking import BlockingReader
from rollout.trainer.errors import NothingArrived
from rollout.trainer.reading.consumed import merge_states
from rollout.trainer.reading.groups import Group
from rollout.trainer.reading.settings import ReaderSettings
from transports import QueueError
from transports.redaction import hide_passwords

T = TypeVar("T")

_MAX_PROCESSES = 1024
_POLL_SECONDS = 0.5
_COMMIT_POLL_SECONDS = 0.1
_UNSET = -1


@dataclass(frozen=True, slots=True)
class Receipt:
    """The state of a reader that has returned a portion and all earlier portions of the same process."""

    process: int
    """The index of the reading process in the loader; 0 without a loader."""
    number: int
    """The number that identifies the state. A later state has a higher number, even after the reader is replaced."""
    state: Mapping[str, Any]
    """The result of the reader's `state_dict()`."""


@dataclass(frozen=True, slots=True)
class Portion(Generic[T]):
    """One item of a dataset: a batch and the state of its reader.

    Attributes:
        batch: the result of the dataset's `make`.
        receipt: the state of the reader; `TrajectoryDataset.trained` needs it.
    """

    batch: T
    receipt: Receipt


class TrajectoryDataset(IterableDataset[Portion[T]]):
    """Reads whole groups, and yields the batches that `make` makes. Use it with `DataLoader(…, batch_size=None)`.

    Args:
        url: the URL of the trajectories queue.
        make: the function that makes a batch from groups. It runs in the reading process, and returns None if these
            groups have nothing to train.
        groups_per_batch: the number of groups that `make` gets.
        rank: the rank of this trainer process.
        world_size: the number of trainer processes that read the queue.
        settings: the settings of the readers.
        timeout: seconds to wait for a group before `NothingArrived` is raised.
    """

    def __init__(
        self,
        url: str,
        make: Callable[[Sequence[Group]], T | None],
        *,
        groups_per_batch: int = 1,
        rank: int = 0,
        world_size: int = 1,
        settings: ReaderSettings | None = None,
        timeout: float = 1800.0,
    ) -> None:
        self._url = url
        self._make_batch = make
        self._groups_per_batch = groups_per_batch
        self._rank = rank
        self._world_size = world_size
        self._settings = settings
        self._timeout = timeout
        self._loaded_state: Mapping[str, Any] | None = None
        self._trained_receipts: dict[int, Receipt] = {}
        self._saved_receipts: dict[int, Receipt] = {}
        # The loader's processes share these tensors. The first has the number of each process's last committed state.
        self._committed_numbers = _shared_numbers(_MAX_PROCESSES)
        self._shared_version = _shared_numbers(1)
        self._close_requested = _shared_numbers(1)

    def trained(self, portion: Portion[T]) -> None:
        """Add this portion, and all earlier portions of the same process, to the next state."""
        self._trained_receipts[portion.receipt.process] = portion.receipt

    def state_dict(self) -> dict[str, Any]:
        """Return the state that contains all portions passed to `trained`; save it atomically with the weights."""
        self._saved_receipts = dict(self._trained_receipts)
        return self._merged_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. The number of processes may differ. Raises ReaderStateError for invalid data."""
        merge_states([state])  # raises for an invalid state here, and not later in a loader's process
        self._loaded_state, self._trained_receipts = state, {}

    def commit(self) -> None:
        """Let the readers ack the records in the last state; call it when this state is safely stored."""
        for process, receipt in self._saved_receipts.items():
            self._committed_numbers[process] = receipt.number

    def close(self) -> None:
        """Tell all reading processes to stop within half a second, so that they release their partitions.

        Without this call, torch waits five seconds for each process that waits for records, and then kills the process.
        The partitions of a killed process stay leased until the lease expires.
        """
        self._close_requested[0] = 1

    @property
    def version(self) -> int | None:
        """The trainer's policy version. Set it after each update; the readers need it to compute the staleness."""
        number = int(self._shared_version[0])
        return None if number == _UNSET else number

    @version.setter
    def version(self, version: int) -> None:
        self._shared_version[0] = version

    def __iter__(self) -> Iterator[Portion[T]]:
        """Yield portions until the dataset is closed or the launches have ended; see `TrajectoryReader.ended`.

        Raises:
            NothingArrived: no whole group arrived before the timeout.
        """
        loader_worker = get_worker_info()
        process_index, process_count = (
            (loader_worker.id, loader_worker.num_workers) if loader_worker is not None else (0, 1)
        )
        reader = BlockingReader(
            self._url,
            rank=self._rank * process_count + process_index,
            world_size=self._world_size * process_count,
            settings=self._settings,
        )
        with reader:
            if self._loaded_state is not None or self._trained_receipts:
                reader.load_state_dict(self._merged_state())
            number_base = time.time_ns()
            with _BackgroundCommitter(reader, self._committed_numbers, process_index, number_base) as committer:
                while groups := self._read_groups(reader, committer):
                    if (batch := self._make_batch(groups)) is not None:
                        state = reader.state_dict()
                        yield Portion(batch, Receipt(process_index, number_base + state["number"], state))

    def _read_groups(self, reader: BlockingReader, committer: "_BackgroundCommitter") -> list[Group]:
        """Return the next groups: no groups if the dataset is closed, and fewer groups at the end of the queue."""
        groups: list[Group] = []
        deadline = time.monotonic() + self._timeout
        while len(groups) < self._groups_per_batch and not reader.ended:
            committer.raise_failure()
            if self._should_stop():
                return []
            reader.version = self.version
            if (group := reader.receive_group(timeout=_POLL_SECONDS)) is not None:
                groups.append(group)
                deadline = time.monotonic() + self._timeout
            elif time.monotonic() > deadline:
                raise NothingArrived(
                    f"{hide_passwords(self._url)}: no whole group came within {self._timeout:g} s. Check that the "
                    f"workers are running, or raise the dataset's timeout. {reader.describe_wait()}"
                )
        return groups

    def _should_stop(self) -> bool:
        """Whether the dataset was closed or the training process has died."""
        parent_process = multiprocessing.parent_process()
        orphaned = get_worker_info() is not None and parent_process is not None and not parent_process.is_alive()
        return orphaned or int(self._close_requested[0]) != _UNSET

    def _merged_state(self) -> dict[str, Any]:
        loaded_states = [] if self._loaded_state is None else [self._loaded_state]
        return merge_states([*loaded_states, *(receipt.state for receipt in self._trained_receipts.values())])


class _BackgroundCommitter:
    """Runs in a thread of the reading process, and acks the records that the training process has committed.

    Without the thread, a reading process would ack only when the loader asks for the next batch. Until then, the
    queue's backlog would stay high.
    """

    def __init__(
        self, reader: BlockingReader, committed_numbers: torch.Tensor, process_index: int, number_base: int
    ) -> None:
        self._reader = reader
        self._committed_numbers = committed_numbers
        self._process_index = process_index
        self._number_base = number_base
        self._last_committed = 0
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader-commits", daemon=True)

    def __enter__(self) -> "_BackgroundCommitter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def raise_failure(self) -> None:
        """If a commit has failed, raise its error."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._failure is None:
            is_stopping = self._stop.wait(_COMMIT_POLL_SECONDS)
            # A number below the base belongs to a state of an earlier reader.
            number = int(self._committed_numbers[self._process_index]) - self._number_base
            if number > self._last_committed:
                try:
                    self._reader.commit(number)
                except (RolloutError, QueueError) as error:
                    self._failure = error
                self._last_committed = number
            if is_stopping:
                return


def _shared_numbers(size: int) -> torch.Tensor:
    """Return `size` unset numbers in memory that this process shares with the loader's processes."""
    numbers: Any = torch.full((size,), _UNSET, dtype=torch.int64)
    shared: torch.Tensor = numbers.share_memory_()
    return shared
