"""What a check says about its subject."""

from dataclasses import dataclass
from enum import Enum


class CheckStatus(Enum):
    """The outcome of a check; UNKNOWN means that the subject could not be examined."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the table; it has a `fix` if the `message` does not say what to do."""

    subject: str
    message: str
    status: CheckStatus = CheckStatus.OK
    fix: str | None = None
