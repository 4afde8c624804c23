"""Enums that say how a rollout ended: whether it has a score, and which limit stopped it."""

from enum import StrEnum


class RolloutStatus(StrEnum):
    """Says whether a rollout has a score. The trainer trains only on rollouts with the status `OK`.

    Attributes:
        OK: the environment gave the rollout a score, so it has a reward.
        UNSCORED: a limit stopped the rollout before it had a score.
        FAILED: the rollout ended with an error.
        ABANDONED: the rollout was no longer needed.
    """

    OK = "ok"
    UNSCORED = "unscored"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def trains(self) -> bool:
        """Whether the trainer trains on a rollout with this status."""
        return self is RolloutStatus.OK


class RolloutLimit(StrEnum):
    """Says which limit stopped a rollout. A rollout with a limit can have any status.

    Attributes:
        NONE: no limit stopped the rollout.
        TURNS: the rollout had as many turns as its environment allows.
        TOKENS: the last answer reached the maximum length of an answer.
        CONTEXT: the conversation no longer fitted into the model's context.
        TIME: the rollout took too long, or it was a straggler of its group.
    """

    NONE = "none"
    TURNS = "turns"
    TOKENS = "tokens"
    CONTEXT = "context"
    TIME = "time"
