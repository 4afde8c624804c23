"""The result of a check."""

from dataclasses import dataclass
from enum import Enum


class CheckStatus(Enum):
    """The outcome of a check. UNKNOWN means that the check could not be made."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check, shown as one line of a table.

    Attributes:
        subject: the thing that was checked.
        message: the finding, or the error.
        status: the outcome of the check.
        fix: the action that corrects the error; None if there is no error, or if the message names the action.
    """

    subject: str
    message: str
    status: CheckStatus = CheckStatus.OK
    fix: str | None = None
