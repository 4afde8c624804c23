"""Checks that the planned rollouts fit on the disk: its free space and free files, and what a run writes at least."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rollout.config.load import Config
from rollout.config.queue_urls import fill_queue_url
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.errors import RolloutError
from rollout.rundir.directory import RunDirectoryError
from transports.files.queue import FileOptions, parse_file_url

MIN_RECORD_BYTES_PER_ROLLOUT = 700
"""A rollout puts at least this on its queue: a started record, one step and a finished record."""
_CLAIM_FILES_PER_ROLLOUT = 2
"""A file says that the attempt started, and another one how the rollout ended."""
_OUTCOME_BYTES = 400
_MAX_BLOCK_BYTES = 4096
"""A file system may report larger blocks than those in which it stores small files."""
_PACKING_FILE_SYSTEMS = ("btrfs", "zfs", "bcachefs")
"""They store small files without a block of their own."""


class DiskTooSmall(RolloutError):
    """The planned rollouts do not fit on the disk."""


@dataclass(frozen=True, slots=True)
class PlannedRollouts:
    """The rollouts of one environment that are still to be played.

    Attributes:
        config: the configuration of the environment.
        count: the number of rollouts; None if it is not known before the run.
    """

    config: Config
    count: int | None


@dataclass(slots=True)
class _DiskNeeds:
    """What is written to one file system.

    Attributes:
        directory: a directory of the file system.
        free_bytes: how much an ordinary user may still write.
        free_files: how many files an ordinary user may still create; None if the file system has no such limit.
        file_system: the type of the file system, such as ext4; None if it is not known.
        bytes_needed: the bytes that the rollouts write at least.
        files_needed: the number of files that the rollouts create at least.
        backlog_bytes: the bytes that queues may hold while their trainers are slower than the workers.
    """

    directory: Path
    free_bytes: int
    free_files: int | None
    file_system: str | None
    bytes_needed: int = 0
    files_needed: int = 0
    backlog_bytes: int = 0


def check_disk(run_directory: Path, planned: Sequence[PlannedRollouts]) -> CheckResult:
    """Check that these rollouts of one run fit on the disks; return the finding.

    Only what is certain is counted: the claims, and the records on a `file://` queue that keeps them. Images, logs and
    artifacts come on top, and their size is not known before the run.

    Raises:
        RunDirectoryError: the directory cannot be written.
        DiskTooSmall: the rollouts cannot fit.
    """
    try:
        require_writable(run_directory)
    except OSError as error:
        raise RunDirectoryError(
            f"{run_directory} cannot be written: {error.strerror}. Make {nearest_existing(run_directory)} writable for "
            "this user, or set run.directory."
        ) from None
    disks: dict[int, _DiskNeeds] = {}
    for rollouts in planned:
        claims = _needs_of(run_directory, disks)
        claims.files_needed += _CLAIM_FILES_PER_ROLLOUT * (rollouts.count or 0)
        claims.bytes_needed += _stored_outcome_bytes(claims) * (rollouts.count or 0)
        for directory, options in _file_queue(rollouts.config, run_directory):
            records = _needs_of(directory, disks)
            records.backlog_bytes += options.high_water
            if options.retain:
                records.bytes_needed += MIN_RECORD_BYTES_PER_ROLLOUT * (rollouts.count or 0)
    for disk in disks.values():
        _require_space(disk, planned)
    problems = [_backlog_problem(disk) for disk in disks.values() if disk.backlog_bytes > disk.free_bytes]
    if problems:
        return CheckResult("disk", "; ".join(problems), CheckStatus.UNKNOWN)
    return CheckResult("disk", "; ".join(_describe(disk, planned) for disk in disks.values()))


def require_writable(directory: Path) -> None:
    """Raise OSError if no file can be created in a directory, or in its nearest parent that exists."""
    with tempfile.TemporaryFile(dir=nearest_existing(directory)):
        pass


def nearest_existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def file_system_type(path: Path) -> str | None:
    """Return the type of the file system of a path, such as ext4; None if this machine does not tell."""
    resolved, found, depth = path.resolve(), None, 0
    for mount_point, type_name in _mounts():
        # A later mount at the same place hides the earlier one.
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= depth:
            found, depth = type_name, len(mount_point.parts)
    return found


def _mounts() -> Iterator[tuple[Path, str]]:
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        mount, _, source = line.partition(" - ")
        # In this file, a space in a path is written as \040.
        yield Path(mount.split(" ")[4].replace("\\040", " ")), source.split(" ")[0]


def _needs_of(path: Path, disks: dict[int, _DiskNeeds]) -> _DiskNeeds:
    """Return the needs of the file system that has this path."""
    directory = next(candidate for candidate in (path, *path.parents) if candidate.exists())
    device = directory.stat().st_dev
    if device not in disks:
        free = os.statvfs(directory)
        disks[device] = _DiskNeeds(
            directory,
            free_bytes=free.f_bavail * free.f_frsize,
            free_files=free.f_favail if free.f_files else None,
            file_system=file_system_type(directory),
        )
    return disks[device]


def _stored_outcome_bytes(disk: _DiskNeeds) -> int:
    """Return the bytes that the file with one outcome takes on the disk."""
    if disk.file_system in _PACKING_FILE_SYSTEMS:
        return _OUTCOME_BYTES
    return max(_OUTCOME_BYTES, min(_MAX_BLOCK_BYTES, os.statvfs(disk.directory).f_frsize))


def _file_queue(config: Config, run_directory: Path) -> Iterable[tuple[Path, FileOptions]]:
    """Return the directory and the options of the trajectories queue if it is a directory."""
    url = fill_queue_url(config.queue.url, run_directory, config.run.name)
    return (parse_file_url(url),) if url.startswith("file:") else ()


def _require_space(disk: _DiskNeeds, planned: Sequence[PlannedRollouts]) -> None:
    """Raise DiskTooSmall if what the rollouts write at least does not fit."""
    lacks_files = disk.free_files is not None and disk.files_needed > disk.free_files
    if disk.bytes_needed > disk.free_bytes or lacks_files:
        raise DiskTooSmall(
            f"{_describe(disk, planned)}. Free some space, put the run elsewhere (run.directory, queue.url), or play "
            "fewer tasks (tasks.count)."
        )


def _backlog_problem(disk: _DiskNeeds) -> str:
    return (
        f"{disk.directory}: it is not known whether the records fit: the queue may hold {_size(disk.backlog_bytes)} "
        f"before workers wait for the trainer, but {_size(disk.free_bytes)} are free. Free some space, or lower "
        "high_water in queue.url."
    )


def _describe(disk: _DiskNeeds, planned: Sequence[PlannedRollouts]) -> str:
    file_system = f" ({disk.file_system})" if disk.file_system else ""
    memory = "; it is in memory, so a restart of the machine deletes it" if disk.file_system == "tmpfs" else ""
    files = "" if disk.free_files is None else f" and {disk.free_files:,} files"
    if any(rollouts.count is None for rollouts in planned):
        needs = "how much the rollouts write is not known before the run"
    else:
        count = sum(rollouts.count or 0 for rollouts in planned)
        written_files = f" and {disk.files_needed:,} files" if disk.files_needed else ""
        needs = f"{count:,} rollouts write at least {_size(disk.bytes_needed)}{written_files}, without images and logs"
    return f"{disk.directory}{file_system}: {_size(disk.free_bytes)}{files} are free{memory}; {needs}"


def _size(count: int) -> str:
    unit, name = next((unit for unit in ((1e9, "GB"), (1e6, "MB")) if count >= unit[0]), (1e3, "kB"))
    return f"{count / unit:,.1f} {name}"
