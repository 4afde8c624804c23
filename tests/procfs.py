"""What the kernel says of processes that tests have started, or whose children those have."""

from pathlib import Path


def process_state(pid: int) -> str | None:
    """One letter, as ps says it; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def lives(pid: int) -> bool:
    """Whether it is there, and not only because nobody has asked how it ended."""
    return process_state(pid) not in (None, "Z")
