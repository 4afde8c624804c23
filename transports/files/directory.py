"""The layout of a queue's directory, and the file that fixes its format and partitions."""

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

_FORMAT_VERSION = 1
_SEGMENT_NAME_PATTERN = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})\.seg")


class SegmentName(NamedTuple):
    """The name of a segment; sorts by writer, then in the order in which the writer wrote."""

    writer: str
    first_seq: int

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
    """Whether it was created to keep acked records; a handle without this option must not delete an archive."""

    @property
    def holders_dir(self) -> Path:
        return self.root / "holders"

    def partition_dir(self, index: int) -> Path:
        return self.root / f"p{index}"

    def claims_dir(self, index: int) -> Path:
        return self.partition_dir(index) / "claims"

    def dead_letters_dir(self, index: int) -> Path:
        return self.partition_dir(index) / "dead"


def open_queue_directory(url: str, root: Path, partitions: int | None, *, retain: bool | None = None) -> QueueDirectory:
    """Open the queue in `root`; if there is none yet, create it with that many partitions (None: one)."""
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
    """An id for a writer or a holder; no two are equal."""
    return secrets.token_hex(8)


def list_segments(directory: Path) -> list[SegmentName]:
    """All segments of a directory, sorted; none if it does not exist."""
    return sorted(
        SegmentName(match[1], int(match[2], 16))
        for file_name in list_file_names(directory)
        if (match := _SEGMENT_NAME_PATTERN.fullmatch(file_name))
    )


def list_segments_by_writer(directory: Path) -> list[list[SegmentName]]:
    """List all segments, those of each writer together."""
    return [list(segments) for _, segments in groupby(list_segments(directory), key=lambda segment: segment.writer)]


def list_file_names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def sync_directory(directory: Path) -> None:
    """Make the names of newly created files survive a power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_queue_json(root: Path) -> tuple[int, bool]:
    text = (root / "queue.json").read_text()
    try:
        queue_json = json.loads(text)
        if queue_json["format"] != _FORMAT_VERSION:
            raise QueueCorrupt(
                f"{root} holds a queue of format {queue_json['format']}; this release reads format {_FORMAT_VERSION}"
            )
        return int(queue_json["partitions"]), bool(queue_json.get("retain", False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise QueueCorrupt(f"{root / 'queue.json'} is not what describes a queue: {error!r}") from None


def _create_queue(root: Path, partitions: int, *, retain: bool) -> None:
    for index in range(partitions):
        for name in (f"p{index}/claims", f"p{index}/dead"):
            (root / name).mkdir(parents=True, exist_ok=True)
    (root / "holders").mkdir(exist_ok=True)
    temporary_file = root / f"queue.json.{new_random_id()}"
    with temporary_file.open("w") as file:
        json.dump({"format": _FORMAT_VERSION, "partitions": partitions, "retain": retain}, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link appears complete and only once: if several processes create the queue together, one wins.
        os.link(temporary_file, root / "queue.json")
    except FileExistsError:
        pass
    finally:
        temporary_file.unlink()
    sync_directory(root)
