"""The root of every error this package raises on purpose.

An error message is one paragraph: what is wrong, where (which file, key, message or part), and what to do about it.
The command line prints that paragraph and exits with `exit_code`; a traceback is shown only with `--debug`.
"""

from collections.abc import Iterator
from typing import ClassVar


class RolloutError(Exception):
    """A run could not go on, or a request was refused; the text says what to do."""

    exit_code: ClassVar[int] = 1
    infrastructure: ClassVar[bool] = False
    """Whether the fault lies with the machines, so that another attempt may succeed, rather than with one request."""


class ConfigurationError(RolloutError):
    """What the user wrote (YAML, command line, environment class) is not usable."""

    exit_code: ClassVar[int] = 2


def flatten_exceptions(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside of groups, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from flatten_exceptions(inner)
    else:
        yield error


def primary_error(error: BaseException, expected_types: tuple[type[BaseException], ...]) -> BaseException:
    """The exception that a person should read: the first one that was foreseen, or else the first."""
    exceptions = list(flatten_exceptions(error))
    return next((exception for exception in exceptions if isinstance(exception, expected_types)), exceptions[0])
