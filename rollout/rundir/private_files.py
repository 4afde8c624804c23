"""Files that may contain a password: from their creation on, only their owner can read them."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_private_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that only its owner can read. A reader gets all of the old or the new content. Raises OSError."""
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
