"""Writes files that may contain a password. Only their owner can ever read them."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_private_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file with the permissions `mode`; by default, only its owner can read it. Raises OSError if that fails.

    The file is replaced atomically: a reader gets the whole old content or the whole new content.
    """
    draft_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    descriptor = os.open(draft_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        draft_path.rename(path)
    except BaseException:
        with suppress(OSError):
            draft_path.unlink()
        raise
