"""Makes file names of the ids of rollouts, which may have any characters and any length."""

import hashlib
from urllib.parse import quote

_READABLE_LENGTH = 100


def rollout_file_name(rollout_id: str) -> str:
    """Return a file name for a rollout. It begins with the readable id, and no two rollouts have the same."""
    readable_name = quote(rollout_id, safe="", errors="replace")[:_READABLE_LENGTH]
    digest = hashlib.blake2b(rollout_id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{readable_name}-{digest}"
