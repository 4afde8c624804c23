"""Writes the records of one writer to segment files. If a record cannot be written completely, it is removed again."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

from transports.base import Frames
from transports.errors import QueueStorageError
from transports.files.directory import SegmentName, new_random_id, sync_directory
from transports.files.records import PutTotals, pack_header, pack_record

_MAX_BUFFERS = 512
"""The largest number of buffers in one call of pwritev. Every operating system accepts this number."""


class SegmentWriter:
    """Appends the records of one writer to segments in a directory. Any thread may call its methods."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._writer_id = new_random_id()
        self._put_totals = PutTotals(0, 0)
        self._fd: int | None = None
        self._end = 0
        self._unsynced = False
        self._new_files_unsynced = False
        self._full_unsynced_fds: list[int] = []

    def append(self, frames: Frames, key: str, tag: str) -> int:
        """Write a record, and return its sequence number.

        If the disk refuses, no part of the record stays, and QueueStorageError is raised.
        """
        with self._lock:
            try:
                self._append(frames, key.encode("utf-8", "surrogatepass"), tag.encode("utf-8", "surrogatepass"))
            except OSError as error:
                raise self._storage_error(error) from error
            return self._put_totals.records - 1

    def sync(self) -> None:
        """Sync all records to the disk that were appended before this call, so that they survive a power loss.

        Raises QueueStorageError if the disk refuses. The next record then goes to a new file.
        """
        with self._lock:
            if not self._unsynced:
                return
            fds, self._full_unsynced_fds = self._full_unsynced_fds, []
            if self._fd is not None:
                fds.append(os.dup(self._fd))
            sync_new_files, self._new_files_unsynced, self._unsynced = self._new_files_unsynced, False, False
        try:
            # Sync without the lock, so that records can be appended at the same time.
            for fd in fds:
                os.fsync(fd)
            if sync_new_files:
                sync_directory(self._directory)
        except OSError as error:
            with self._lock:
                self._start_new_writer()
            raise self._storage_error(error) from error
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Write a mark that this writer has closed, so that its last segment can be removed later. Do not sync."""
        with self._lock:
            if self._fd is not None:
                # On a full disk the mark is not written, so the segment stays after its records are acked.
                with contextlib.suppress(OSError):
                    self._append((), b"", b"")
            for fd in [*self._full_unsynced_fds, *([] if self._fd is None else [self._fd])]:
                os.close(fd)
            self._fd, self._full_unsynced_fds = None, []

    def _append(self, frames: Frames, key: bytes, tag: bytes) -> None:
        if self._fd is None or self._end >= self._segment_bytes:
            self._open_segment()
        assert self._fd is not None
        buffers, length, put_totals = pack_record(
            self._put_totals.records, time.time(), key, tag, frames, self._put_totals
        )
        if len(buffers) > _MAX_BUFFERS:
            buffers = [b"".join(buffers)]
        try:
            if os.pwritev(self._fd, buffers, self._end) != length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._truncate_to_end(self._fd)
            raise
        self._end += length
        self._put_totals = put_totals
        self._unsynced = True

    def _open_segment(self) -> None:
        path = self._directory / str(SegmentName(self._writer_id, self._put_totals.records))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        header = pack_header(self._put_totals)
        try:
            if os.pwrite(fd, header, 0) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        if self._fd is not None:
            self._full_unsynced_fds.append(self._fd)
        self._fd, self._end, self._new_files_unsynced = fd, len(header), True

    def _truncate_to_end(self, fd: int) -> None:
        try:
            os.ftruncate(fd, self._end)
        except OSError:
            self._start_new_writer()

    def _start_new_writer(self) -> None:
        """Continue with a new writer id and a new file, because the end of the current file is not known."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._writer_id, self._put_totals = None, new_random_id(), PutTotals(0, 0)

    def _storage_error(self, error: OSError) -> QueueStorageError:
        return QueueStorageError(
            f"{self._directory}: the record was not accepted: {error.strerror}. Earlier records are intact. "
            "Free some space, and then put the record again."
        )
