"""The errors that a judge raises, in addition to `Retry`."""

from rollout.environments.base import Retry
from rollout.errors import RolloutError


class JudgeRefused(RolloutError):
    """The judge refused the question (4xx) or redirected it (3xx), or the question cannot be sent.

    Another attempt would fail in the same way.
    """


class JudgeClosed(Retry):
    """The judge's client was closed before the answer came, or before the question was asked."""


class TryFailed(Exception):
    """One try gave no answer, but another try may give one.

    Attributes:
        reason: why the try failed; an error shows it after "the judge … gave no answer".
        retry_after: the seconds to wait before another try; 0 if the judge did not name a time.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
