"""The result of a check, and the exit code of all checks."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from renderers_adapter.errors import AdapterError
from rollout.errors import ConfigurationError
from transports import QueueURLError


class CheckStatus(Enum):
    """The outcome of a check.

    Attributes:
        OK: the message was proven.
        BAD: something is wrong.
        UNKNOWN: the check was asked for, but cannot be made here.
        NOTHING: this set-up has nothing to check, or the check was not asked for.
    """

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "unknown"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check, shown as one line of a table.

    Attributes:
        subject: the thing that was checked.
        message: the finding, or the error.
        status: the outcome of the check.
        fix: the action that corrects the error; None if there is no error, or if the message names the action.
        is_configuration_error: whether `run` and `launch` exit with 2 for this error. The error is then in the YAML, in
            what it names (the environment, its tasks, the model), or in what the environment needs of this machine.
    """

    subject: str
    message: str
    status: CheckStatus = CheckStatus.OK
    fix: str | None = None
    is_configuration_error: bool = False


def error_result(subject: str, error: Exception) -> CheckResult:
    """Return the result of a check that found an error. `run` and `launch` exit with 2 for the same errors."""
    is_configuration_error = isinstance(error, ConfigurationError | AdapterError | QueueURLError)
    return CheckResult(subject, str(error), CheckStatus.BAD, is_configuration_error=is_configuration_error)


def exit_code(results: Iterable[CheckResult]) -> int:
    """Return the exit code of `rollout doctor` for these results.

    0 means that every check proved what it says. 1 means that something is wrong, and 2 that the configuration
    itself is wrong. 3 means that nothing wrong was found, but at least one check could not be made.
    """
    found = list(results)
    if any(result.is_configuration_error for result in found):
        return 2
    if any(result.status is CheckStatus.BAD for result in found):
        return 1
    return 3 if any(result.status is CheckStatus.UNKNOWN for result in found) else 0
