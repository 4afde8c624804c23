"""Where things lie in the directory of a queue, and the one file that fixes what it is."""

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

_FORMAT = 1
_SEGMENT = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})\.seg")


class SegmentName(NamedTuple):
    """Sorts by writer, then in the order in which the writer wrote."""

    writer: str
    first_seq: int

    def __str__(self) -> str:
        return f"{self.writer}.{self.first_seq:016x}.seg"


@dataclass(frozen=True, slots=True)
class Layout:
    """A queue's directory that is known to exist and to be one."""

    root: Path
    partitions: int
    retain: bool
    """Whether it was created to keep what is acked; a handle that says nothing of it must not clear an archive away."""

    @property
    def holders(self) -> Path:
        return self.root / "holders"

    def partition(self, index: int) -> Path:
        return self.root / f"p{index}"

    def claims(self, index: int) -> Path:
        return self.partition(index) / "claims"

    def dead(self, index: int) -> Path:
        return self.partition(index) / "dead"


def open_layout(url: str, root: Path, partitions: int | None, *, retain: bool | None = None) -> Layout:
    """The queue in `root`, created with that many partitions (None: one) where there is none yet."""
    try:
        if not (root / "queue.json").exists():
            _create(root, partitions or 1, retain=bool(retain))
        found, retained = _read(root)
    except OSError as error:
        raise QueueStorageError(f"{url}: the directory {root} cannot be used: {error.strerror}") from error
    if partitions not in (None, found):
        raise QueueURLError(f"{url}: the queue was created with partitions={found}")
    return Layout(root, found, retained)


def new_name() -> str:
    """For a writer or a holder; no two ever share one."""
    return secrets.token_hex(8)


def list_segments(directory: Path) -> list[SegmentName]:
    """All segments of a directory, sorted; none where it does not exist."""
    return sorted(
        SegmentName(match[1], int(match[2], 16))
        for name in list_names(directory)
        if (match := _SEGMENT.fullmatch(name))
    )


def list_lanes(directory: Path) -> list[list[SegmentName]]:
    """The same, the segments of each writer together."""
    return [list(names) for _, names in groupby(list_segments(directory), key=lambda name: name.writer)]


def list_names(directory: Path) -> list[str]:
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


def _read(root: Path) -> tuple[int, bool]:
    text = (root / "queue.json").read_text()
    try:
        stored = json.loads(text)
        if stored["format"] != _FORMAT:
            raise QueueCorrupt(
                f"{root} holds a queue of format {stored['format']}; this release reads format {_FORMAT}"
            )
        return int(stored["partitions"]), bool(stored.get("retain", False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise QueueCorrupt(f"{root / 'queue.json'} is not what describes a queue: {error!r}") from None


def _create(root: Path, partitions: int, *, retain: bool) -> None:
    for index in range(partitions):
        for name in (f"p{index}/claims", f"p{index}/dead"):
            (root / name).mkdir(parents=True, exist_ok=True)
    (root / "holders").mkdir(exist_ok=True)
    draft = root / f"queue.json.{new_name()}"
    with draft.open("w") as file:
        json.dump({"format": _FORMAT, "partitions": partitions, "retain": retain}, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link appears whole and only once: of several processes that create the queue together, one wins.
        os.link(draft, root / "queue.json")
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    sync_directory(root)
