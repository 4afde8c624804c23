"""How a rollout ended: its status and its limit."""

from enum import StrEnum


class RolloutStatus(StrEnum):
    """Whether a rollout has a score.

    Attributes:
        OK: the environment gave it a score; it has a reward and trains.
        UNSCORED: a limit ended it before it had a score; it does not train.
        FAILED: it ended with an error; it does not train.
        ABANDONED: it was no longer needed; it does not train.
    """

    OK = "ok"
    UNSCORED = "unscored"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def trains(self) -> bool:
        """Whether a rollout with this status trains."""
        return self is RolloutStatus.OK


class RolloutLimit(StrEnum):
    """Which limit stopped a rollout, whatever its status is.

    Attributes:
        NONE: no limit.
        TURNS: it had as many turns as the environment allows.
        TOKENS: its last answer was as long as an answer may be.
        CONTEXT: its conversation no longer fitted the model's context.
        TIME: it took too long, or its group was done long before.
    """

    NONE = "none"
    TURNS = "turns"
    TOKENS = "tokens"
    CONTEXT = "context"
    TIME = "time"
