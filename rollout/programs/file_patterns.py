"""Finds the files below a directory whose paths match a pattern such as `*.log`, `logs/*.txt` or `**`.

A pattern is a relative path with `/` between its parts. In a part, `*` stands for any characters, `?` for one
character, and `[abc]` for one of these characters; none of them matches a `/`. A part `**` stands for any number of
directories, also for none. A pattern that ends with `**` matches all files below. Upper and lower case differ. A name
that begins with a dot is a name as any other.

So `*.log` matches `a.log` and not `logs/a.log`, and `**/*.log` matches both.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from rollout.programs.directories import open_child

MAX_LEVELS = 100
"""Directories below this level are not searched."""
_ANY_DIRECTORIES = "**"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An entry that matches a pattern and is no directory.

    Attributes:
        directory: the file descriptor of its directory, open until the next file is asked for.
        path: its path, relative to the directory that was searched.
    """

    directory: int
    path: PurePosixPath


class PathMatch:
    """What the patterns still expect after the first parts of a path."""

    def __init__(self, rests: Iterable[tuple[str, ...]]) -> None:
        self._rests = frozenset(shorter for rest in rests for shorter in _without_leading_directories(rest))

    @classmethod
    def start(cls, patterns: Sequence[str]) -> "PathMatch":
        """Return what the patterns expect at the start of a path."""
        return cls(_parts(pattern) for pattern in patterns)

    def step(self, name: str) -> "PathMatch":
        """Return what the patterns expect after one more part of the path."""
        return PathMatch(_after_one_name(rest) for rest in self._rests if rest and _accepts(rest[0], name))

    @property
    def is_complete(self) -> bool:
        """Whether the path matches a pattern."""
        return () in self._rests

    @property
    def expects_more(self) -> bool:
        """Whether a longer path may match a pattern."""
        return any(self._rests)


def check_pattern(pattern: str) -> str:
    """Return the pattern itself. Raise ValueError if it cannot match a path below a directory."""
    path = PurePosixPath(pattern)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError("expected the pattern of a path in the work directory, such as *.log, without `..`")
    return pattern


def find_files(directory: int, patterns: Sequence[str]) -> Iterator[FoundFile]:
    """Yield what matches a pattern, except directories, sorted by path. Links are not followed."""
    yield from _find(directory, PurePosixPath(), PathMatch.start(patterns), 0)


def _find(directory: int, path: PurePosixPath, match: PathMatch, level: int) -> Iterator[FoundFile]:
    for name in sorted(os.listdir(directory)):
        following = match.step(name)
        if following.is_complete or following.expects_more:
            try:
                child = open_child(name, directory)
            except NotADirectoryError:
                if following.is_complete:
                    yield FoundFile(directory, path / name)
                continue
            except OSError:  # it vanished, or belongs to another user
                continue
            try:
                if following.expects_more and level < MAX_LEVELS:
                    yield from _find(child, path / name, following, level + 1)
            finally:
                os.close(child)


def _parts(pattern: str) -> tuple[str, ...]:
    parts = PurePosixPath(pattern).parts
    return (*parts, "*") if parts[-1:] == (_ANY_DIRECTORIES,) else parts


def _without_leading_directories(rest: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the rest of a pattern, and its forms in which a leading `**` stands for no directory."""
    yield rest
    while rest and rest[0] == _ANY_DIRECTORIES:
        rest = rest[1:]
        yield rest


def _accepts(part: str, name: str) -> bool:
    return part == _ANY_DIRECTORIES or fnmatchcase(name, part)


def _after_one_name(rest: tuple[str, ...]) -> tuple[str, ...]:
    return rest if rest[0] == _ANY_DIRECTORIES else rest[1:]
