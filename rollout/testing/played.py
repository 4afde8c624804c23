"""A played rollout: its conversation turn by turn, its score, and its trajectory."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from rollout.environments.base import Reply, Score
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.messages import Message
from rollout.records.stream import RolloutStream
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from rollout.session.turns import SessionTurn
from rollout.testing.answers import Answer
from rollout.testing.message_text import describe_messages
from rollout.testing.scripted_engine import call_of_chat
from rollout.trainer.trajectory import Trajectory
from rollout.worker.failures import Failure

_SHOWN_MESSAGES = 4


class NotScored(AssertionError):
    """A test reads the score of a rollout without a score; the text has the traceback of the environment's error."""


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """One call of `chat`.

    Attributes:
        turn: the number of the turn, as in `Reply.turn`.
        messages: the whole conversation that the environment sent.
        new_messages: the messages that the environment added, which no earlier turn has.
        tools: the schemas of the tools that the environment sent.
        reply: the answer that the environment got.
    """

    turn: int
    messages: tuple[Message, ...]
    new_messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reply: Reply


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Played:
    """A played rollout.

    Attributes:
        turns: the turns, in the order in which they began.
        trajectory: the rollout as the trainer reads it; `rollout.trainer.check` finds errors in its tokens.
        failure: the error that the environment raised, if the rollout failed.
        unused_answers: the answers in the test's list for which the environment did not ask.
        close_failure: the traceback of the first `Environment.close` that failed or did not end; None if there is none.
            It does not change the score.
        artifacts: the directory that the last attempt got from `model.artifacts_directory()`; None if it did not ask
            for one. Without `policy=…`, the directory is deleted when this object is.
    """

    turns: tuple[PlayedTurn, ...] = field(repr=False)
    trajectory: Trajectory = field(repr=False)
    failure: Failure | None = None
    unused_answers: tuple[Answer, ...] = ()
    close_failure: str | None = None
    artifacts: Path | None = None

    @property
    def status(self) -> RolloutStatus:
        """The status, which says whether the rollout has a score."""
        return self.trajectory.status

    @property
    def limit(self) -> RolloutLimit:
        """The limit that stopped the rollout."""
        return self.trajectory.limit

    @property
    def attempts(self) -> int:
        """The number of attempts; more than one if the environment raised `Retry`."""
        return self.trajectory.attempt

    @property
    def messages(self) -> list[Message]:
        """The conversation of the last turn, with its answer at the end."""
        if not self.turns:
            return []
        return [*self.turns[-1].messages, self.turns[-1].reply.message]

    @property
    def error(self) -> str | None:
        """The error that ended a rollout without a score, with the environment's traceback; None if it has a score."""
        record = self.trajectory.error
        if record is None:
            return None
        traceback = None if self.failure is None else self.failure.traceback
        return traceback or f"{record.get('type')}: {record.get('message')}"

    @property
    def score(self) -> Score:
        """The score that the environment returned, with the rewards of its turns.

        Raises:
            NotScored: the rollout has no score.
        """
        trajectory = self.trajectory
        if trajectory.reward is None:
            limit = "" if self.limit is RolloutLimit.NONE else f" (limit: {self.limit})"
            last_messages = describe_messages(self.messages[-_SHOWN_MESSAGES:]) or "  (no message)"
            raise NotScored(
                f"The rollout is {self.status}{limit}, so it has no score.\n{self.error or ''}\n"
                f"Its conversation ends with:\n{last_messages}"
            )
        return Score(
            None if trajectory.rewards else trajectory.reward,  # type: ignore[arg-type]  # computed from `rewards`
            trajectory.metrics,
            {name: reward.value for name, reward in trajectory.rewards.items()},
            {name: reward.weight for name, reward in trajectory.rewards.items()},
            trajectory.turn_rewards,
            trajectory.limit,
        )

    @property
    def reward(self) -> float:
        """The reward. This and the properties below raise NotScored if there is no score."""
        self.score  # noqa: B018 - raises NotScored
        assert self.trajectory.reward is not None
        return self.trajectory.reward

    @property
    def rewards(self) -> Mapping[str, float]:
        """The rewards by name."""
        return self.score.rewards

    @property
    def turn_rewards(self) -> Mapping[int, float]:
        """The rewards of single answers, by turn."""
        return self.score.turn_rewards

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the score."""
        return self.score.metrics


class RecordingSession(Session):
    """A session that records the conversation and the answer of each turn."""

    def __init__(self, policy: PolicyClient, stream: RolloutStream) -> None:
        super().__init__(policy, stream)
        self._recorded: list[PlayedTurn] = []

    @property
    def recorded_turns(self) -> tuple[PlayedTurn, ...]:
        """The turns that were played, in the order in which they began."""
        return tuple(sorted(self._recorded, key=lambda played: played.turn))

    async def play_turn(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
        **options: Any,
    ) -> SessionTurn:
        """See `Session.play_turn`."""
        with call_of_chat(self._next_turn, messages, tools):
            turn = await super().play_turn(messages, tools=tools, sampling=sampling, **options)
        reply = turn.reply
        # Copy the messages after the turn, because it replaces the images in them by references.
        sent = copy.deepcopy(messages)
        known = max((_common_length(sent, played) for played in self._recorded), default=0)
        played = PlayedTurn(reply.turn, tuple(sent), tuple(sent[known:]), tuple(tools or ()), copy.deepcopy(reply))
        self._recorded.append(played)
        return turn


def _common_length(messages: Sequence[Message], played: PlayedTurn) -> int:
    """Return the number of first messages that are equal to the conversation and the answer of an earlier turn."""
    pairs = zip(messages, (*played.messages, played.reply.message), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
