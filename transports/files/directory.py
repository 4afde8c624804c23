"""The layout of a queue's directory, and `queue.json`, which fixes its format and partitions."""

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
    """The name of a segment. Names sort by writer, then in the order in which the writer wrote."""

    writer: str
    """The id of the writer."""
    first_seq: int
    """The sequence number of the first record."""

    def __str__(self) -> str:
        return f"{self.writer}.{self.first_seq:016x}.seg"


@dataclass(frozen=True, slots=True)
class QueueDirectory:
    """The directory of an existing queue."""

    root: Path
    """The path of the directory."""
    partitions: int
    """How many partitions the queue was created with."""
    retain: bool
    """Whether it was created to keep acked records. A handle without this option must not delete an archive."""

    @property
    def holders_dir(self) -> Path:
        """The directory of the heartbeats."""
        return self.root / "holders"

    def partition_dir(self, index: int) -> Path:
        """Return the directory of a partition."""
        return self.root / f"p{index}"

    def claims_dir(self, index: int) -> Path:
        """Return the directory of the claims of single records."""
        return self.partition_dir(index) / "claims"

    def dead_letters_dir(self, index: int) -> Path:
        """Return the directory of the dead letters of a partition."""
        return self.partition_dir(index) / "dead"


class StorageErrors:
    """Turns an OSError into a QueueStorageError. It is a class, because that is faster and every ack uses it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise QueueStorageError(
                f"{self._url}: {error}. Check that the directory exists, has room, and may be written."
            ) from error


def open_queue_directory(url: str, root: Path, partitions: int | None, *, retain: bool | None = None) -> QueueDirectory:
    """Open the queue in `root`. If there is none, create it with that many partitions (None: one)."""
    try:
        if not (root / "queue.json").exists():
            _create_queue(root, partitions or 1, retain=bool(retain))
        stored_partitions, stored_retain = _read_queue_json(root)
    except OSError as error:
        raise QueueStorageError(f"{url}: the directory {root} cannot be used: {error.strerror}") from error
    if partitions not in (None, stored_partitions):
        raise QueueURLError(f"{url}: the queue was created with partitions={stored_partitions}")
    return QueueDirectory(root, stored_partitions, stored_retain)


def new_random_id() -> str:
    """Return an id for a writer or a holder. No two are equal."""
    return secrets.token_hex(8)


def list_segments(directory: Path) -> list[SegmentName]:
    """Return all segments of a directory, sorted; none if it does not exist."""
    return sorted(
        SegmentName(match[1], int(match[2], 16))
        for file_name in list_file_names(directory)
        if (match := _SEGMENT_NAME_PATTERN.fullmatch(file_name))
    )


def list_segments_by_writer(directory: Path) -> list[list[SegmentName]]:
    """Return all segments, a list for each writer."""
    return [list(segments) for _, segments in groupby(list_segments(directory), key=lambda segment: segment.writer)]


def list_file_names(directory: Path) -> list[str]:
    """Return the names of all files in a directory; none if it does not exist."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def sync_directory(directory: Path) -> None:
    """Make the names of new files survive a power loss."""
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
                f"{root} holds a queue of format {queue_json['format']!r}; this release reads format {_FORMAT_VERSION}"
            )
        partitions, retain = queue_json["partitions"], queue_json.get("retain", False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged_queue_json(file, repr(error)) from None
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS or type(retain) is not bool:
        raise _damaged_queue_json(file, f"partitions is {partitions!r:.40} and retain is {retain!r:.40}")
    return partitions, retain


def _damaged_queue_json(file: Path, reason: str) -> QueueCorrupt:
    return QueueCorrupt(
        f"{file} does not describe a queue: {reason}. Correct it to "
        f'{{"format": {_FORMAT_VERSION}, "partitions": N, "retain": false}}, where N is the number of the directories '
        "p0, p1, … beside it, and retain is true if the queue was created to keep acked records."
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
        # A link appears complete and only once. If several processes create the queue together, one of them wins.
        os.link(temporary_file, root / "queue.json")
    except FileExistsError:
        pass
    finally:
        temporary_file.unlink(missing_ok=True)
    sync_directory(root)
