"""The result of a check."""

from dataclasses import dataclass
from enum import Enum


class CheckStatus(Enum):
    """The outcome of a check; UNKNOWN: the check could not be made."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the table.

    Attributes:
        subject: what was checked.
        message: what was found.
        status: the outcome.
        fix: what to do, if the message does not say it.
    """

    subject: str
    message: str
    status: CheckStatus = CheckStatus.OK
    fix: str | None = None
