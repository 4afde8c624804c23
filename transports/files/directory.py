"""The layout of a queue's directory. The file `queue.json` stores the format and the number of partitions."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from transports.errors import QueueCorrupt, QueueStorageError, QueueURLError
from transports.urls import MAX_PARTITIONS

_FORMAT_VERSION = 1
_MAX_QUEUE_JSON_BYTES = 4096
_SEGMENT_NAME_PATTERN = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})\.seg")


class SegmentName(NamedTuple):
    """The name of a segment. Sorted names are ordered by writer, and then by the order of the writes."""

    writer: str
    """The id of the writer."""
    first_seq: int
    """The sequence number of the first record in the segment."""

    def __str__(self) -> str:
        return f"{self.writer}.{self.first_seq:016x}.seg"


@dataclass(frozen=True, slots=True)
class QueueDirectory:
    """The directory of an existing queue."""

    root: Path
    """The path of the directory."""
    partitions: int
    """The number of partitions with which the queue was created."""
    retain: bool
    """Whether the queue was created to keep acked records. A handle without the option retain then keeps them, too."""

    @property
    def holders_dir(self) -> Path:
        """The directory of the heartbeat files."""
        return self.root / "holders"

    def partition_dir(self, index: int) -> Path:
        """Return the directory of a partition."""
        return self.root / f"p{index}"

    def claims_dir(self, index: int) -> Path:
        """Return the directory of a partition's claims of single records."""
        return self.partition_dir(index) / "claims"

    def dead_letters_dir(self, index: int) -> Path:
        """Return the directory of a partition's dead letters."""
        return self.partition_dir(index) / "dead"


class StorageErrors:
    """Turns an OSError in a `with` block into a QueueStorageError.

    It is not a generator, because a class is faster, and every ack uses it.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise QueueStorageError(
                f"{self._url}: {error}. Check that the directory exists, that its disk has space, and that this user "
                "may write to it."
            ) from error


def open_queue_directory(url: str, root: Path, partitions: int | None, *, retain: bool | None = None) -> QueueDirectory:
    """Return the queue in the directory `root`. If there is no queue, create one.

    Args:
        url: the URL of the queue, for errors.
        root: the directory.
        partitions: the number of partitions. None: any number, and 1 for a new queue.
        retain: whether a queue that is created keeps acked records. None: it does not.

    Raises:
        QueueStorageError: the directory cannot be used.
        QueueURLError: the queue has another number of partitions.
        QueueCorrupt: `queue.json` is damaged, or has another format.
    """
    try:
        if not (root / "queue.json").exists():
            _create_queue(root, partitions or 1, retain=bool(retain))
        stored_partitions, stored_retain = _read_queue_json(root)
    except OSError as error:
        raise QueueStorageError(
            f"{url}: the directory {root} cannot be used: {error.strerror}. Check that this user may write to it."
        ) from error
    if partitions not in (None, stored_partitions):
        raise QueueURLError(f"{url}: the queue was created with partitions={stored_partitions}; use that number")
    return QueueDirectory(root, stored_partitions, stored_retain)


def new_random_id() -> str:
    """Return a new unique id for a writer or a holder."""
    return secrets.token_hex(8)


def list_segments(directory: Path) -> list[SegmentName]:
    """Return the names of all segments in a directory, sorted. Return none if the directory does not exist."""
    return sorted(
        SegmentName(match[1], int(match[2], 16))
        for file_name in list_file_names(directory)
        if (match := _SEGMENT_NAME_PATTERN.fullmatch(file_name))
    )


def list_segments_by_writer(directory: Path) -> list[list[SegmentName]]:
    """Return the names of all segments in a directory, as one sorted list for each writer."""
    return [list(segments) for _, segments in groupby(list_segments(directory), key=lambda segment: segment.writer)]


def list_file_names(directory: Path) -> list[str]:
    """Return the names of all files in a directory. Return none if the directory does not exist."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def sync_directory(directory: Path) -> None:
    """Sync a directory to the disk, so that the names of its new files survive a power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_queue_json(root: Path) -> tuple[int, bool]:
    file = root / "queue.json"
    with file.open("rb") as stream:
        data = stream.read(_MAX_QUEUE_JSON_BYTES)
    try:
        queue_json = json.loads(data)
        if queue_json["format"] != _FORMAT_VERSION:
            raise QueueCorrupt(
                f"{root} has a queue of format {queue_json['format']!r}, but this release reads format "
                f"{_FORMAT_VERSION}; use the release that created the queue"
            )
        partitions, retain = queue_json["partitions"], queue_json.get("retain", False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged_queue_json(file, repr(error)) from None
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS or type(retain) is not bool:
        raise _damaged_queue_json(file, f"partitions has the value {partitions!r:.40}, and retain {retain!r:.40}")
    return partitions, retain


def _damaged_queue_json(file: Path, reason: str) -> QueueCorrupt:
    return QueueCorrupt(
        f"{file} does not describe a queue: {reason}. Correct it to "
        f'{{"format": {_FORMAT_VERSION}, "partitions": N, "retain": false}}. N is the number of the directories p0, '
        "p1, … in the same directory. Set retain to true if the queue was created to keep acked records."
    )


def _create_queue(root: Path, partitions: int, *, retain: bool) -> None:
    for index in range(partitions):
        for name in (f"p{index}/claims", f"p{index}/dead"):
            (root / name).mkdir(parents=True, exist_ok=True)
    (root / "holders").mkdir(exist_ok=True)
    temporary_file = root / f"queue.json.{new_random_id()}"
    try:
        with temporary_file.open("w") as file:
            json.dump({"format": _FORMAT_VERSION, "partitions": partitions, "retain": retain}, file)
            file.flush()
            os.fsync(file.fileno())
        # The linked file is complete, and only one link can succeed, even if several processes create the queue.
        os.link(temporary_file, root / "queue.json")
    except FileExistsError:
        pass
    finally:
        temporary_file.unlink(missing_ok=True)
    sync_directory(root)
