"""The build context: the tracked files of the checkout that .dockerignore lets through."""

import re
import shutil
import subprocess
from pathlib import Path


def copy_context(repository: Path, target: Path) -> None:
    """Write the context that the daemon would get from a clean checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    patterns = (repository / ".dockerignore").read_text().splitlines()
    for name in filter(None, listed.split("\0")):
        if not is_ignored(name, patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target / name, follow_symlinks=False)


def is_ignored(name: str, patterns: list[str]) -> bool:
    """Return whether these lines of a .dockerignore exclude a file; the last line that matches it decides."""
    ignored = False
    for line in patterns:
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            excludes = not pattern.startswith("!")
            if re.fullmatch(_expression(pattern.removeprefix("!").strip("/")), name):
                ignored = excludes
    return ignored


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern; it also matches everything in a directory of that name."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(parts.get(piece, re.escape(piece)) for piece in pieces) + "(?:/.*)?"
