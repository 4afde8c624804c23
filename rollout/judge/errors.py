"""The errors of requests to a judge, besides `Retry`."""

from rollout.environments.base import Retry
from rollout.errors import RolloutError


class JudgeRefused(RolloutError):
    """The judge refuses the question (4xx) or redirects it (3xx), or the question cannot be sent.

    Another attempt would fail in the same way.
    """


class JudgeClosed(Retry):
    """The judge's client was closed before the answer came, or before the question was asked."""


class TryFailed(Exception):
    """One try brought no answer, but another one may.

    Attributes:
        reason: the reason, as an error says it after "the judge … gave no answer".
        retry_after: the seconds to wait before another try, if the judge named them.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
