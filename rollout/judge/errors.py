"""What can go wrong between an environment and its judge, besides `Retry`."""

from rollout.environments.base import Retry
from rollout.errors import RolloutError


class JudgeRefused(RolloutError):
    """The judge refuses the question (400, 401, 403, 404, …) or sends it elsewhere (3xx), or it cannot be sent.

    Another attempt changes nothing.
    """


class JudgeClosed(Retry):
    """The judge's client was closed before the answer came, or before the question."""


class TryFailed(Exception):
    """One try brought no answer, and another one may.

    Attributes:
        reason: why, as an error says it behind "the judge … gave no answer".
        retry_after: seconds that the judge asks to wait for before another try.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
