"""The image directory of a run: one file for each distinct image, named by the hash of its bytes.

Many processes write to one directory at the same time. A process writes an image to a temporary file, which it keeps
locked, and then renames the file. So a file under its final name is always complete. The next process that opens the
store removes temporary files that are not locked, because their writers were killed.
"""

import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path

from rollout.config.image_limits import MAX_IMAGE_BYTES
from rollout.images.allowed_files import read_regular_file
from rollout.images.errors import AssetError, ImageError, ImageStoreError
from rollout.records.bounds import ASSET_NAME

_TEMPORARY_PREFIX = ".incoming-"
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class ImageStore:
    """Writes images into one directory, which it creates. Raises ImageStoreError if the directory cannot be used.

    Attributes:
        directory: the absolute path of the directory.
    """

    def __init__(self, directory: Path, *, fsync: bool) -> None:
        self.directory = directory
        self._fsync = fsync
        self._path_prefix = f"{directory}/"
        self._url_prefix = directory.as_uri() + "/"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned_files()
        except OSError as error:
            raise self._directory_error(error) from error

    def url(self, file_name: str) -> str:
        """Return the `file://` URL of an asset in this directory."""
        return self._url_prefix + file_name

    def add(self, file_name: str, data: bytes) -> int:
        """Store an image unless the directory already has it; return the number of bytes written."""
        path = self._path_prefix + file_name
        try:
            if _is_complete(path, len(data)):
                return 0
            while not self._try_write(path, data):
                pass
            if self._fsync:
                _fsync_directory(self.directory)
        except OSError as error:
            raise self._directory_error(error) from error
        return len(data)

    def _try_write(self, path: str, data: bytes) -> bool:
        # Returns False if another process removed the temporary file before this process could lock it.
        temporary_path = f"{self._path_prefix}{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        fd = os.open(temporary_path, _NEW_FILE_FLAGS, 0o644)
        try:
            if not _lock_new_file(fd):
                return False
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(fd, remaining) :]
            if self._fsync:
                os.fsync(fd)
            os.rename(temporary_path, path)
        except OSError:
            os.unlink(temporary_path)
            raise
        finally:
            os.close(fd)
        return True

    def _remove_abandoned_files(self) -> None:
        with os.scandir(self.directory) as entries:
            abandoned = [entry.path for entry in entries if entry.name.startswith(_TEMPORARY_PREFIX)]
        for path in abandoned:
            _remove_if_abandoned(path)

    def _directory_error(self, error: OSError) -> ImageStoreError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return ImageStoreError(
            f"the image directory {self.directory} cannot be used: {reason}; free disk space, make the directory "
            "writable, or set another run directory"
        )


def read_asset(directory: Path, file_name: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Return the bytes of a stored image, after checking the hash in its name.

    Raises:
        AssetError: the name is not that of an asset, or the file is missing, changed, or a link.
    """
    if not ASSET_NAME.fullmatch(file_name):
        raise AssetError(file_name, "the name is not a sha256 with the extension of an image format")
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            data = read_regular_file(directory_fd, file_name, max_bytes)
        finally:
            os.close(directory_fd)
    except FileNotFoundError as error:
        raise AssetError(file_name, f"the file is missing in {directory}") from error
    except OSError as error:
        raise AssetError(file_name, f"the file in {directory} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise AssetError(file_name, error.reason) from error
    if hashlib.sha256(data).hexdigest() != file_name[:64]:
        raise AssetError(
            file_name, f"the file in {directory} was changed: its bytes no longer have the hash in the name"
        )
    return data


def _is_complete(path: str, size: int) -> bool:
    # Files get their names, which are hashes, only when they are complete. So a regular file of this size is the image.
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _lock_new_file(fd: int) -> bool:
    # Another process that cleans up may lock or remove the file before this process locks it.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink == 1


def _remove_if_abandoned(path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(fd)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
