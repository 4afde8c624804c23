"""The base classes of the errors that this package raises on purpose, and functions that describe users' errors.

An error message is one paragraph: what is wrong, where (which file, key, message or part), and what to do about it.
The command line prints that paragraph and exits with `exit_code`; its traceback is shown only with `--debug`.
"""

import importlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from traceback import FrameSummary, TracebackException, extract_tb
from typing import ClassVar

from rollout.texts import escape_surrogates

_OWN_PACKAGES = ("rollout", "transports", "renderers_adapter")
_OWN_DIRECTORIES = tuple(f"{Path(__file__).parent.parent / name}/" for name in _OWN_PACKAGES)
_ENVIRONMENTS_DIRECTORY = Path(__file__).parent / "environments"
_BASE_CLASSES = tuple(
    str(_ENVIRONMENTS_DIRECTORY / f"{name}.py")
    for name in (
        *("base", "multi_turn", "tools", "tool_environment", "tool_results", "tool_running", "own_threads"),
        *("program", "program_checks", "program_playing", "program_scoring", "program_texts"),
    )
)
_IMPORT_MACHINERY = ("<frozen importlib", importlib.__file__)
_MAX_EXCEPTIONS = 1000
_MAX_CHAIN = 50
"""The limit for the exceptions in a chain of causes, and for the levels of exception groups."""
_LIBRARY_DIRECTORIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class RolloutError(Exception):
    """A run cannot continue, or a request was refused. The message says what to do."""

    exit_code: ClassVar[int] = 1
    infrastructure: ClassVar[bool] = False
    """Whether the infrastructure failed, so that another attempt may succeed."""


class ConfigurationError(RolloutError):
    """The user's YAML, command line or environment class is not usable."""

    exit_code: ClassVar[int] = 2


class TooManyExceptions(RolloutError):
    """A user's code raised a group with more exceptions than can be shown."""


def error_text(error: BaseException) -> str:
    """Return the text of an exception, even if its `__str__` fails."""
    try:
        return escape_surrogates(str(error))
    except BaseException:  # noqa: BLE001 - str() of a user's exception may raise anything
        return "(the exception cannot be shown as text)"


def printable_error(error: BaseException) -> BaseException:
    """Return an exception with a traceback of limited length; cut off a long chain of causes.

    A group may contain another group several times, at many levels, so that a few objects look like billions of
    exceptions. Such a group is replaced by a `TooManyExceptions`.
    """
    stack, count = [(error, 1)], 0
    while stack:
        current, depth = stack.pop()
        members = current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        count += 1
        if count + len(stack) + len(members) > _MAX_EXCEPTIONS or (members and depth >= _MAX_CHAIN):
            return TooManyExceptions(
                f"the code raised a {type(error).__name__} that is too large to show: it has more than "
                f"{_MAX_EXCEPTIONS:,} exceptions, or more than {_MAX_CHAIN} levels."
            ).with_traceback(error.__traceback__)
        if depth >= _MAX_CHAIN:
            current.__cause__ = current.__context__ = None
        causes = {id(cause): cause for cause in (current.__cause__, current.__context__) if cause is not None}
        stack += [(inner, depth + 1) for inner in (*members, *causes.values())]
    return error


def flatten_exceptions(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group at any depth, or the exception itself if it is not a group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from flatten_exceptions(inner)
    else:
        yield error


def primary_error(error: BaseException, expected_types: tuple[type[BaseException], ...]) -> BaseException:
    """Return the exception of a group to show: the first one of an expected type, or else the first one."""
    exceptions = list(flatten_exceptions(error))
    return next((exception for exception in exceptions if isinstance(exception, expected_types)), exceptions[0])


def user_traceback(error: BaseException) -> str | None:
    """Return the traceback of an error from the first frame of the user's code on, or None without such a frame.

    The causes of the error and the members of a group are treated in the same way. For errors of this package, the
    frames after the user's last frame are left out too, because the message says what to do.
    """
    error = printable_error(error)
    traceback = TracebackException.from_exception(error)
    if not _keep_user_frames(traceback, error):
        return None
    return escape_surrogates("".join(traceback.format()))


def describe_user_error(error: BaseException) -> str:
    """Return the part of the traceback in the user's code; if there is none, the error's type and message."""
    traceback = user_traceback(error)
    if traceback is None:
        return f"{type(error).__name__}: {error_text(error)}"
    return f"\n{indent(traceback.rstrip(), '  ')}"


def describe_user_line(error: BaseException) -> str | None:
    """Return `file:line` of the innermost frame of the user's code, or None if all frames are in this package.

    A frame of an installed package or the standard library is returned only if there is no other frame, because the
    user's own line is more useful.
    """
    frames = [frame for frame in extract_tb(error.__traceback__) if not _is_own_frame(frame)]
    written = [frame for frame in frames if not frame.filename.startswith(("<", *_LIBRARY_DIRECTORIES))]
    innermost = (written or frames)[-1:]
    return f"{innermost[0].filename}:{innermost[0].lineno}" if innermost else None


def _keep_user_frames(traceback: TracebackException, error: BaseException) -> bool:
    """Remove our own frames around the user's frames, and return whether any frame of the user is left."""
    frames = list(traceback.stack)
    is_named = type(error).__module__.partition(".")[0] in _OWN_PACKAGES
    while frames and _is_own_frame(frames[0]):
        del frames[0]
    while is_named and frames and _is_own_frame(frames[-1]):
        del frames[-1]
    if is_named and all(frame.filename.startswith(_LIBRARY_DIRECTORIES) for frame in frames):
        frames = []  # such as those of the thread that called our code
    traceback.stack[:] = [f for f in frames if not f.filename.startswith((*_BASE_CLASSES, *_IMPORT_MACHINERY))]
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    inner = [(traceback.__cause__, error.__cause__), (traceback.__context__, error.__context__)]
    inner += zip(traceback.exceptions or (), members, strict=False)
    found = [_keep_user_frames(part, cause) for part, cause in inner if part is not None and cause is not None]
    return bool(traceback.stack) or isinstance(error, SyntaxError) or any(found)


def _is_own_frame(frame: FrameSummary) -> bool:
    """Whether a frame is in this package or in Python's import code. Environments that we ship count as users' code."""
    if frame.filename.startswith(f"{_ENVIRONMENTS_DIRECTORY}/"):
        return frame.filename in _BASE_CLASSES
    return frame.filename.startswith((*_OWN_DIRECTORIES, *_IMPORT_MACHINERY))
