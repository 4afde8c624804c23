"""Provides a reader for a trainer without an event loop; the reader runs on an event loop in its own thread."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollout.trainer.reading.groups import Group
from rollout.trainer.reading.ranks import open_reader
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.reading.settings import ReaderSettings
from rollout.trainer.reading.stats import ReaderStats
from rollout.trainer.trajectory import Trajectory

_POLL_SECONDS = 0.5


class BlockingReader:
    """A `TrajectoryReader` with blocking methods; the arguments are those of `open_reader`.

    with BlockingReader(url) as reader:
        for group in reader.groups():
            train(group)

    Use it in a `with` statement. Each method does the same as the method of `TrajectoryReader` with the same name.
    """

    def __init__(self, url: str, *, rank: int = 0, world_size: int = 1, settings: ReaderSettings | None = None) -> None:
        self._open_reader = lambda: open_reader(url, rank=rank, world_size=world_size, settings=settings)
        self._stack = ExitStack()
        self._portal: BlockingPortal
        self._reader: TrajectoryReader

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            # Create the reader on the event loop, because its queue belongs to the event loop that opens it.
            reader = self._portal.call(self._open_reader)
            self._reader = stack.enter_context(self._portal.wrap_async_context_manager(reader))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield trajectories until the launches have ended; see `TrajectoryReader.ended`."""
        while not self.ended:
            if (trajectory := self.receive(timeout=_POLL_SECONDS)) is not None:
                yield trajectory

    def groups(self) -> Iterator[Group]:
        """Yield groups until the launches have ended; see `TrajectoryReader.groups`."""
        while not self.ended:
            if (group := self.receive_group(timeout=_POLL_SECONDS)) is not None:
                yield group

    @property
    def ended(self) -> bool:
        """Whether the launches have ended and everything was returned. See `TrajectoryReader.ended`."""
        return self._reader.ended

    def receive(self, *, timeout: float) -> Trajectory | None:
        """Return the next finished trajectory; None after `timeout` seconds. See `TrajectoryReader.receive`."""
        return self._portal.call(partial(self._reader.receive, timeout=timeout))

    def receive_group(self, *, timeout: float) -> Group | None:
        """Return the next group; None after `timeout` seconds. See `TrajectoryReader.receive_group`."""
        return self._portal.call(partial(self._reader.receive_group, timeout=timeout))

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save with the weights. See `TrajectoryReader.state_dict`."""
        return self._portal.call(self._reader.state_dict)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. See `TrajectoryReader.load_state_dict`."""
        self._portal.call(self._reader.load_state_dict, state)

    def commit(self, number: int | None = None) -> None:
        """Ack the records of a saved state. See `TrajectoryReader.commit`."""
        self._portal.call(self._reader.commit, number)

    def describe_wait(self) -> str:
        """Return sentences that say for what the reader waits."""
        return self._portal.call(self._reader.describe_wait)

    def stats(self) -> ReaderStats:
        """Return the reader's counters and the amount of data that it holds."""
        return self._portal.call(self._reader.stats)

    def serve_metrics(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve the reader's metrics until the reader is closed; return the root URL. See `rollout.trainer.metrics`."""
        from rollout.trainer.metrics import serving_metrics

        metrics_server = self._portal.wrap_async_context_manager(serving_metrics(self._reader, host=host, port=port))
        return self._stack.enter_context(metrics_server)

    @property
    def version(self) -> int | None:
        """The trainer's policy version. Set it after each update; the reader needs it to compute the staleness."""
        return self._reader.version

    @version.setter
    def version(self, version: int | None) -> None:
        self._reader.version = version
