"""Counts and checks the images of a run on disk, and removes images that no record refers to.

Every process of a run holds a shared lock on `run.lock` until it ends. Garbage collection needs the exclusive lock.
Therefore it does not start while a process of the run is alive, and no process of the run starts during it.
"""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollout.errors import RolloutError
from rollout.images.errors import AssetError, ImageStoreError
from rollout.images.store import read_asset
from rollout.records.bounds import ASSET_NAME

IMAGE_DIRECTORY = Path("assets", "images")
RUN_LOCK_FILE = "run.lock"


class RunHeldError(RolloutError):
    """Another process has locked the run directory."""


@dataclass(frozen=True, slots=True)
class AssetStats:
    """The content of an image directory.

    Attributes:
        files: the number of assets.
        n_bytes: the total size of the assets in bytes.
        by_extension: the number of assets with each file name extension.
        foreign: the number of other files, which do not have the name of an asset.
    """

    files: int
    n_bytes: int
    by_extension: Mapping[str, int]
    foreign: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a check of all assets.

    Attributes:
        checked: the number of assets that were read.
        problems: one error for each asset whose content does not match the hash in its name.
    """

    checked: int
    problems: tuple[AssetError, ...]


@dataclass(frozen=True, slots=True)
class GcReport:
    """The result of a garbage collection. With `dry_run`, it says what a real collection would remove.

    Attributes:
        removed: the file names of the removed assets.
        bytes_removed: the total size of the removed assets in bytes.
        kept_referenced: the number of assets that were kept because a record refers to them.
        kept_young: the number of assets that were kept because they are younger than the grace time.
        dry_run: whether this was only a trial, so that no file was removed.
    """

    removed: tuple[str, ...]
    bytes_removed: int
    kept_referenced: int
    kept_young: int
    dry_run: bool


@contextmanager
def hold_run_lock(run_directory: Path) -> Iterator[None]:
    """Hold the shared lock of a run in a `with` block. All processes of the run may hold it at the same time.

    Raises:
        RunHeldError: the garbage of the run is being collected.
    """
    with _locked_run(run_directory, fcntl.LOCK_SH, "its garbage is being collected. Start the run after that."):
        yield


def asset_stats(run_directory: Path) -> AssetStats:
    """Count the assets of a run.

    Raises:
        ImageStoreError: the image directory cannot be read.
    """
    assets, foreign = _list_assets(run_directory)
    extensions = Counter(entry.name[64:] for entry in assets)
    return AssetStats(len(assets), sum(entry.stat().st_size for entry in assets), dict(extensions), foreign)


def verify_assets(run_directory: Path) -> VerifyReport:
    """Read every asset of a run and compare it with the hash in its name.

    Raises:
        ImageStoreError: the image directory cannot be read.
    """
    assets, _ = _list_assets(run_directory)
    problems = []
    for entry in assets:
        try:
            read_asset(run_directory / IMAGE_DIRECTORY, entry.name)
        except AssetError as error:
            problems.append(error)
    return VerifyReport(len(assets), tuple(problems))


def collect_garbage(
    run_directory: Path, referenced: Collection[str], *, grace_seconds: float, dry_run: bool
) -> GcReport:
    """Remove the assets that are not referenced and are older than the grace time. Other files are kept.

    Args:
        run_directory: the directory of the run.
        referenced: the file names of assets in unacked records and kept trajectories.
        grace_seconds: the age in seconds below which assets are kept.
        dry_run: whether to report only, and remove nothing.

    Raises:
        RunHeldError: a process of the run is alive.
        ImageStoreError: the image directory cannot be read, or an asset cannot be removed.
    """
    with _locked_run(
        run_directory, fcntl.LOCK_EX, "a process of the run still works in it. Try again when the process has ended."
    ):
        assets, _ = _list_assets(run_directory)
        unreferenced = [entry for entry in assets if entry.name not in referenced]
        newest_removable_time = time.time() - grace_seconds
        garbage = [(entry.path, entry.name, entry.stat(follow_symlinks=False)) for entry in unreferenced]
        garbage = [item for item in garbage if item[2].st_mtime <= newest_removable_time]
        for path, _, _ in garbage if not dry_run else ():
            try:
                os.unlink(path)
            except OSError as error:
                raise ImageStoreError(f"the image {path} cannot be removed: {error.strerror}.") from error
    return GcReport(
        removed=tuple(sorted(name for _, name, _ in garbage)),
        bytes_removed=sum(status.st_size for _, _, status in garbage),
        kept_referenced=len(assets) - len(unreferenced),
        kept_young=len(unreferenced) - len(garbage),
        dry_run=dry_run,
    )


def _list_assets(run_directory: Path) -> tuple[list[os.DirEntry[str]], int]:
    """Return the assets of a run, and the number of other files in the image directory."""
    directory = run_directory / IMAGE_DIRECTORY
    try:
        with os.scandir(directory) as entries:
            all_entries = list(entries)
    except OSError as error:
        raise ImageStoreError(
            f"{directory} cannot be read: {error.strerror}. Use the directory of a run that has images."
        ) from error
    assets = [entry for entry in all_entries if ASSET_NAME.fullmatch(entry.name)]
    return assets, len(all_entries) - len(assets)


@contextmanager
def _locked_run(run_directory: Path, lock_operation: int, held_reason: str) -> Iterator[None]:
    """Lock a run in a `with` block; raise RunHeldError with `held_reason` if another process holds the lock."""
    try:
        fd = os.open(run_directory / RUN_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ImageStoreError(f"the run directory {run_directory} cannot be locked: {error.strerror}.") from error
    try:
        fcntl.flock(fd, lock_operation | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RunHeldError(f"the run directory {run_directory} is locked: {held_reason}") from None
    try:
        yield
    finally:
        os.close(fd)
