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
    """Whether the infrastructure failed, and not one request, so that another attempt may succeed."""


class ConfigurationError(RolloutError):
    """What the user wrote (YAML, command line, environment class) is not usable."""

    exit_code: ClassVar[int] = 2


def flatten_exceptions(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions inside a group, at any depth, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from flatten_exceptions(inner)
    else:
        yield error


def primary_error(error: BaseException, expected_types: tuple[type[BaseException], ...]) -> BaseException:
    """Return the exception that a person should read: the first of the expected types, or else the first of all."""
    exceptions = list(flatten_exceptions(error))
    return next((exception for exception in exceptions if isinstance(exception, expected_types)), exceptions[0])
