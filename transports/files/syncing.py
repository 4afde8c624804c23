"""Syncs records to the disk: before `put` returns (`fsync=always`), or soon after it (`fsync=batch`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from transports.errors import QueueStorageError
from transports.files.segments import SegmentWriter

_BATCH_INTERVAL_SECONDS = 0.05


class AlwaysSync:
    """Makes a put wait for an fsync that began after its write. Puts that wait at the same time share one fsync."""

    def __init__(self) -> None:
        self._running_syncs: dict[SegmentWriter, asyncio.Task[None]] = {}
        self._queued_syncs: dict[SegmentWriter, asyncio.Task[None]] = {}

    def raise_pending_error(self) -> None:
        """Do nothing, because every put raises its own error."""

    async def after_write(self, writer: SegmentWriter) -> None:
        """Wait until the writer's records are synced. Raises QueueStorageError if the disk refuses."""
        if writer not in self._queued_syncs:
            self._queued_syncs[writer] = asyncio.create_task(self._sync_after(writer, self._running_syncs.get(writer)))
        await asyncio.shield(self._queued_syncs[writer])

    async def close(self, writers: Sequence[SegmentWriter]) -> None:
        """Sync all writers."""
        for writer in writers:
            await asyncio.to_thread(writer.sync)

    async def _sync_after(self, writer: SegmentWriter, running_sync: asyncio.Task[None] | None) -> None:
        if running_sync is not None:
            await asyncio.wait([running_sync])
        self._running_syncs[writer] = self._queued_syncs.pop(writer)
        await asyncio.to_thread(writer.sync)


class BatchSync:
    """Lets a put return when the operating system has the record. A thread syncs it to the disk soon after."""

    def __init__(self) -> None:
        self._writers: list[SegmentWriter] = []
        self._pending_error: QueueStorageError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def raise_pending_error(self) -> None:
        """If an earlier sync failed, raise its error once. Some earlier records may not be on the disk then."""
        if self._pending_error is not None:
            error, self._pending_error = self._pending_error, None
            raise error

    async def after_write(self, writer: SegmentWriter) -> None:
        """Make the thread sync this writer from now on; start the thread if needed."""
        if writer not in self._writers:
            self._writers.append(writer)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_syncing, name="segment-sync", daemon=True)
            self._thread.start()

    async def close(self, writers: Sequence[SegmentWriter]) -> None:
        """End the thread, and then sync all writers."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        for writer in writers:
            await asyncio.to_thread(writer.sync)

    def _keep_syncing(self) -> None:
        while not self._stop.wait(_BATCH_INTERVAL_SECONDS):
            for writer in list(self._writers):
                try:
                    writer.sync()
                except QueueStorageError as error:
                    self._pending_error = error
