"""The root of every error this package raises on purpose.

An error message is one paragraph: what is wrong, where (which file, key, message or part), and what to do about it.
The command line prints that paragraph and exits with `exit_code`; a traceback is shown only with `--debug`.
"""

from typing import ClassVar


class RolloutError(Exception):
    """A run could not go on, or a request was refused; the text says what to do."""

    exit_code: ClassVar[int] = 1
    infrastructure: ClassVar[bool] = False
    """Whether the fault lies with the machines, so that another attempt may succeed, rather than with one request."""


class ConfigurationError(RolloutError):
    """What the user wrote (YAML, command line, environment class) is not usable."""

    exit_code: ClassVar[int] = 2
