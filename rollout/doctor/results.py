"""The result of a check, and the exit code of all checks."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class CheckStatus(Enum):
    """The outcome of a check.

    Attributes:
        OK: the message was proven.
        BAD: something is wrong.
        UNKNOWN: the check was asked for, but cannot be made here.
        NOTHING: this set-up has nothing to check.
    """

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "?"
    NOTHING = "-"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check, shown as one line of a table.

    Attributes:
        subject: the thing that was checked.
        message: the finding, or the error.
        status: the outcome of the check.
        fix: the action that corrects the error; None if there is no error, or if the message names the action.
        is_configuration_error: whether the error is in the configuration itself, so that no run could begin with it.
    """

    subject: str
    message: str
    status: CheckStatus = CheckStatus.OK
    fix: str | None = None
    is_configuration_error: bool = False


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
