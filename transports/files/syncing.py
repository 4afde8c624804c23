"""When a put returns and when its record is on the medium: `fsync=always`, `batch` or `never`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Protocol

from transports.errors import QueueStorageError
from transports.files.segments import SegmentWriter

_BATCH_SECONDS = 0.05


class EverySync:
    """`always`: a put returns after an fsync that began after it; puts that wait together share one."""

    def __init__(self) -> None:
        self._running: dict[SegmentWriter, asyncio.Task[None]] = {}
        self._next: dict[SegmentWriter, asyncio.Task[None]] = {}

    def raise_failure(self) -> None:
        """Every put learns of its own."""

    async def written(self, writer: SegmentWriter) -> None:
        if writer not in self._next:
            self._next[writer] = asyncio.create_task(self._sync_after(writer, self._running.get(writer)))
        await asyncio.shield(self._next[writer])

    async def close(self, writers: Sequence[SegmentWriter]) -> None:
        for writer in writers:
            await asyncio.to_thread(writer.sync)

    async def _sync_after(self, writer: SegmentWriter, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        self._running[writer] = self._next.pop(writer)
        await asyncio.to_thread(writer.sync)


class BatchSync:
    """`batch`: a put returns when the system has the record; a thread brings it to the medium soon after."""

    def __init__(self) -> None:
        self._writers: list[SegmentWriter] = []
        self._failed: QueueStorageError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def raise_failure(self) -> None:
        """Raise what went wrong with earlier records, once: they may not have reached the medium."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    async def written(self, writer: SegmentWriter) -> None:
        if writer not in self._writers:
            self._writers.append(writer)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_syncing, name="segment-sync", daemon=True)
            self._thread.start()

    async def close(self, writers: Sequence[SegmentWriter]) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        for writer in writers:
            await asyncio.to_thread(writer.sync)

    def _keep_syncing(self) -> None:
        while not self._stop.wait(_BATCH_SECONDS):
            for writer in list(self._writers):
                try:
                    writer.sync()
                except QueueStorageError as error:
                    self._failed = error


class NoSync:
    """`never`: the system decides when."""

    def raise_failure(self) -> None:
        """There is none."""

    async def written(self, writer: SegmentWriter) -> None:
        """Nothing is waited for."""

    async def close(self, writers: Sequence[SegmentWriter]) -> None:
        """Nor in the end."""


class SyncMode(Protocol):
    """What a put does before and after it wrote, and a handle when it closes."""

    def raise_failure(self) -> None: ...
    async def written(self, writer: SegmentWriter) -> None: ...
    async def close(self, writers: Sequence[SegmentWriter]) -> None: ...


SYNC_MODES: dict[str, type[SyncMode]] = {"always": EverySync, "batch": BatchSync, "never": NoSync}
