"""Batches for a training loop, read in this process or in those of a `DataLoader`, each trained exactly once.

    dataset = TrajectoryDataset(url, partial(batch_of, packing=32768), groups_per_batch=8)
    dataset.load_state_dict(checkpoint["reader"])
    for portion in DataLoader(dataset, batch_size=None, num_workers=2, in_order=False):
        train(portion.batch)
        dataset.trained(portion)
        if time_to_save:
            save(weights, reader=dataset.state_dict())    # what was trained, not what was read ahead
            dataset.commit()
    dataset.close()                                       # the loader's processes give their partitions back

A loader reads ahead, so what was read is not what was trained. Each portion therefore brings the state of its reader
as it is once that portion is trained; the readers of a loader's processes lease disjoint partitions, as ranks do.
With `in_order` the loader would wait for each process in turn, also for one whose partitions have nothing.
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
from rollout.trainer.reading.reader import ReaderSettings
from transports import QueueError

T = TypeVar("T")

_PROCESSES = 1024
_POLL = 0.5
_COMMIT_POLL = 0.1
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Receipt:
    """The state of one process's reader once this portion, and all before it from there, are trained."""

    process: int
    number: int
    """Rises from reader to reader and from state to state, so that it names one state for good."""
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Portion(Generic[T]):
    """What a dataset yields: a batch, and what to tell the dataset once it is trained."""

    batch: T
    receipt: Receipt


class TrajectoryDataset(IterableDataset[Portion[T]]):
    """Yields portions of `groups_per_batch` whole groups each, as `make` turns them into a batch.

    `make` runs where the reading is done: what it costs (pixels, say) is spread over the loader's processes. Where it
    returns None there is nothing to train, and the next groups are taken. Use it with `batch_size=None`.
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
        self._make = make
        self._groups_per_batch = groups_per_batch
        self._rank = rank
        self._world_size = world_size
        self._settings = settings
        self._timeout = timeout
        self._loaded: Mapping[str, Any] | None = None
        self._trained: dict[int, Receipt] = {}
        self._saved: dict[int, Receipt] = {}
        # What this process tells those of a loader: per process the last state that is stored, and the version.
        self._committed = _shared(_PROCESSES)
        self._version = _shared(1)
        self._closed = _shared(1)

    def trained(self, portion: Portion[T]) -> None:
        """The next state contains this portion, and those that came before it from the same process."""
        self._trained[portion.receipt.process] = portion.receipt

    def state_dict(self) -> dict[str, Any]:
        """What was trained; save it atomically with the weights."""
        self._saved = dict(self._trained)
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where a saved state ended, with however many processes."""
        merge_states([state])  # refused here, rather than in another process
        self._loaded, self._trained = state, {}

    def commit(self) -> None:
        """The last state is safely stored: the readers ack what it contains, soon."""
        for process, receipt in self._saved.items():
            self._committed[process] = receipt.number

    def close(self) -> None:
        """Nothing more is wanted: whoever reads stops within half a second, and its partitions are free.

        Without it torch waits five seconds for each of a loader's processes that waits for records, and ends it then;
        its partitions are free once the lease has run out.
        """
        self._closed[0] = 1

    @property
    def version(self) -> int | None:
        """The trainer's version of the policy; set it after each update, so that staleness is known and bounded."""
        told = int(self._version[0])
        return None if told == _NOTHING else told

    @version.setter
    def version(self, version: int) -> None:
        self._version[0] = version

    def __iter__(self) -> Iterator[Portion[T]]:
        """Until the queue ends, which only a replayed one does, or the dataset is closed.

        Raises:
            NothingArrived: no whole group came within the time-out.
        """
        worker = get_worker_info()
        process, processes = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        reader = BlockingReader(
            self._url,
            rank=self._rank * processes + process,
            world_size=self._world_size * processes,
            settings=self._settings,
        )
        with reader:
            if self._loaded is not None or self._trained:
                reader.load_state_dict(self._state())
            base = time.time_ns()
            with _Committer(reader, self._committed, process, base) as committer:
                while groups := self._read(reader, committer):
                    if (batch := self._make(groups)) is not None:
                        state = reader.state_dict()
                        yield Portion(batch, Receipt(process, base + state["number"], state))

    def _read(self, reader: BlockingReader, committer: "_Committer") -> list[Group]:
        """The next groups; none where nobody wants any, and fewer, or none, where the queue has ended."""
        groups: list[Group] = []
        deadline = time.monotonic() + self._timeout
        while len(groups) < self._groups_per_batch and not reader.ended:
            committer.raise_failure()
            if self._unwanted():
                return []
            reader.version = self.version
            if (group := reader.receive_group(timeout=_POLL)) is not None:
                groups.append(group)
                deadline = time.monotonic() + self._timeout
            elif time.monotonic() > deadline:
                raise NothingArrived(
                    f"{self._url}: no whole group came within {self._timeout:g} s ({reader.stats()}). See that workers "
                    "run, or raise the dataset's timeout."
                )
        return groups

    def _unwanted(self) -> bool:
        """Also where the training process was killed: one of its loader's would go on to renew its leases."""
        trainer = multiprocessing.parent_process()
        orphaned = get_worker_info() is not None and trainer is not None and not trainer.is_alive()
        return orphaned or int(self._closed[0]) != _NOTHING

    def _state(self) -> dict[str, Any]:
        loaded = [] if self._loaded is None else [self._loaded]
        return merge_states([*loaded, *(receipt.state for receipt in self._trained.values())])


class _Committer:
    """Acks what the training process says is stored, while the reading process waits to be asked for more.

    Were that left until it is asked, a loader whose processes are all a batch ahead would hold the backlog up.
    """

    def __init__(self, reader: BlockingReader, committed: torch.Tensor, process: int, base: int) -> None:
        self._reader = reader
        self._committed = committed
        self._process = process
        self._base = base
        self._done = 0
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader-commits", daemon=True)

    def __enter__(self) -> "_Committer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._failure is None:
            stopping = self._stop.wait(_COMMIT_POLL)
            # A number from before this reader's time names a state of another reader.
            number = int(self._committed[self._process]) - self._base
            if number > self._done:
                try:
                    self._reader.commit(number)
                except (RolloutError, QueueError) as error:
                    self._failure = error
                self._done = number
            if stopping:
                return


def _shared(size: int) -> torch.Tensor:
    """Numbers that this process and those of a loader see alike."""
    numbers: Any = torch.full((size,), _NOTHING, dtype=torch.int64)
    shared: torch.Tensor = numbers.share_memory_()
    return shared
