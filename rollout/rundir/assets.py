"""The images of a run on disk: their number, a check for damage, and the removal of those that nothing refers to.

Every process of a run holds a shared lock on `run.lock` until it ends. Garbage collection needs the exclusive lock:
it does not start while a process of the run works, and no process of the run starts while it works.
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
    """What is in an image directory.

    Attributes:
        files: how many assets there are.
        n_bytes: the sum of their sizes in bytes.
        by_extension: how many assets have each file name extension.
        foreign: how many other files there are, without the name of an asset.
    """

    files: int
    n_bytes: int
    by_extension: Mapping[str, int]
    foreign: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a check of all assets.

    Attributes:
        checked: how many assets were read.
        problems: one error for each asset whose content does not match the hash in its name.
    """

    checked: int
    problems: tuple[AssetError, ...]


@dataclass(frozen=True, slots=True)
class GcReport:
    """What garbage collection removed, or would remove without `dry_run`, and why it kept the rest.

    Attributes:
        removed: the file names of the removed assets.
        bytes_removed: the sum of their sizes in bytes.
        kept_referenced: how many assets were kept because a record refers to them.
        kept_young: how many assets were kept because they are younger than the grace time.
        dry_run: whether nothing was really removed.
    """

    removed: tuple[str, ...]
    bytes_removed: int
    kept_referenced: int
    kept_young: int
    dry_run: bool


@contextmanager
def hold_run_lock(run_directory: Path) -> Iterator[None]:
    """Hold the shared lock of a run for the block. Any number of the run's processes may hold it.

    Raises:
        RunHeldError: its garbage is being collected.
    """
    with _locked_run(run_directory, fcntl.LOCK_SH, "its garbage is being collected; start the run when that is done"):
        yield


def asset_stats(run_directory: Path) -> AssetStats:
    """Count the assets of a run.

    Raises:
        ImageStoreError: the directory cannot be read.
    """
    assets, foreign = _list_assets(run_directory)
    extensions = Counter(entry.name[64:] for entry in assets)
    return AssetStats(len(assets), sum(entry.stat().st_size for entry in assets), dict(extensions), foreign)


def verify_assets(run_directory: Path) -> VerifyReport:
    """Read every asset of a run and compare it with the hash in its name.

    Raises:
        ImageStoreError: the directory cannot be read.
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
        referenced: the file names in unacked records and kept trajectories.
        grace_seconds: younger assets are kept.
        dry_run: report what would be removed, and remove nothing.

    Raises:
        RunHeldError: a process of the run is alive.
        ImageStoreError: the directory cannot be read, or a file in it cannot be removed.
    """
    with _locked_run(
        run_directory, fcntl.LOCK_EX, "a process of the run still works in it; try again when it has ended"
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
                raise ImageStoreError(f"the asset {path} cannot be removed: {error.strerror}") from error
    return GcReport(
        removed=tuple(sorted(name for _, name, _ in garbage)),
        bytes_removed=sum(status.st_size for _, _, status in garbage),
        kept_referenced=len(assets) - len(unreferenced),
        kept_young=len(unreferenced) - len(garbage),
        dry_run=dry_run,
    )


def _list_assets(run_directory: Path) -> tuple[list[os.DirEntry[str]], int]:
    directory = run_directory / IMAGE_DIRECTORY
    try:
        with os.scandir(directory) as entries:
            all_entries = list(entries)
    except OSError as error:
        raise ImageStoreError(
            f"{directory} cannot be read: {error.strerror}; give the directory of a run with images"
        ) from error
    assets = [entry for entry in all_entries if ASSET_NAME.fullmatch(entry.name)]
    return assets, len(all_entries) - len(assets)


@contextmanager
def _locked_run(run_directory: Path, lock_operation: int, held_reason: str) -> Iterator[None]:
    try:
        fd = os.open(run_directory / RUN_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ImageStoreError(f"the run directory {run_directory} cannot be locked: {error.strerror}") from error
    try:
        fcntl.flock(fd, lock_operation | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RunHeldError(f"the run directory {run_directory} is held: {held_reason}") from None
    try:
        yield
    finally:
        os.close(fd)
