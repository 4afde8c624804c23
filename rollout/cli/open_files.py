"""Checks the limit of open files before a run, and explains an error that this limit caused."""

import errno
import resource
from collections.abc import Iterator

_REQUIRED = 64
"""Enough for a run with one worker; connections to engines need more."""


def require_open_files() -> None:
    """Raise ConfigurationError if this process may open fewer files than a run needs."""
    allowed = _allowed()
    if allowed < _REQUIRED:
        from rollout.errors import ConfigurationError

        raise ConfigurationError(
            f"this process may open only {allowed} files; a run needs at least {_REQUIRED}, and one more for each "
            "request in flight. Raise the limit: ulimit -n 4096."
        )


def describe_missing_files(error: BaseException) -> str | None:
    """Return what to do if the error or one of its causes says that too many files are open; None for other errors."""
    if not any(isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE) for cause in _chain(error)):
        return None
    return (
        f"too many files are open: this process may open {_allowed()} ({error}). Raise the limit (ulimit -n 4096), or "
        "lower worker.concurrency or --workers."
    )


def _allowed() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if allowed == resource.RLIM_INFINITY else allowed


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or any(cause is earlier for earlier in seen):
            continue
        seen.append(cause)
        yield cause
        waiting += [cause.__cause__, cause.__context__]
        waiting += cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
