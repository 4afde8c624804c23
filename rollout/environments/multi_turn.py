"""The base class of environments with `reset` and `step`, for those who prefer them to a loop in `run`."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from rollout.environments.base import (
    ContextExhausted,
    Environment,
    Model,
    Reply,
    Score,
    WrongReturn,
    change_score,
    describe_method,
)
from rollout.records.messages import Message, MessageError
from rollout.records.task import Task
from rollout.records.wrong_types import describe_wrong_type


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of one `step`: messages for the policy, or the score.

    Attributes:
        messages: the messages to add after the reply.
        score: the score, which ends the rollout; None if the rollout continues.
        reward: the reward of the reply, as in `Score.turn_rewards`; None if it has none.
    """

    messages: Sequence[Message] = ()
    score: Score | None = None
    reward: float | None = None


class MultiTurnEnvironment(Environment):
    """An environment with `reset` and `step`; its `run` is a loop that calls them and the model.

    Attributes:
        tools: the schemas of the tools that the model may call.
        conversation: the messages so far, which the next turn sends to the model.
    """

    scoring_method: ClassVar[str] = "step"
    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = None
    conversation: list[Message]

    @abc.abstractmethod
    async def reset(self, task: Task) -> Sequence[Message]:
        """Begin the rollout, and return its first messages."""

    @abc.abstractmethod
    async def step(self, reply: Reply) -> Turn:
        """Process an answer of the model, and return the next messages or the final score."""

    async def truncated(self, conversation: list[Message]) -> Score | None:
        """Return the score of a conversation that no longer fits into the model's context; None means unscored."""
        return None

    @final
    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout, and return its score: call `reset`, then the model and `step` in turn until it is there."""
        self.conversation = _first_messages(self, await self.reset(task))
        turn_rewards: dict[int, float] = {}
        method = "reset"
        while True:
            try:
                reply = await model.chat(self.conversation, tools=self.tools)
            except ContextExhausted:
                score = await self.truncated(self.conversation)
                if score is None:
                    raise
                return _with_turn_rewards(_checked_score(self, "truncated", score), turn_rewards)
            except MessageError as error:  # its traceback does not show the user's code
                error.args = (f"chat with the messages from {describe_method(self, method)} failed: {error}",)
                raise
            method = "step"
            turn = _checked_turn(self, await self.step(reply))
            if turn.reward is not None:
                turn_rewards[reply.turn] = turn.reward
            if turn.score is not None:
                return _with_turn_rewards(turn.score, turn_rewards)
            self.conversation += [reply.message, *turn.messages]


def _first_messages(environment: MultiTurnEnvironment, returned: object) -> list[Message]:
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise WrongReturn(
            f"{describe_method(environment, 'reset')} returned {describe_wrong_type(returned)}; write "
            '`return [{"role": "user", "content": …}]`.'
        )
    return list(returned)


def _checked_score(environment: MultiTurnEnvironment, name: str, score: object) -> Score:
    if not isinstance(score, Score):
        raise WrongReturn(
            f"{describe_method(environment, name)} returned {describe_wrong_type(score)}; write "
            "`return Score(reward=…)`, or `return None` to leave the rollout unscored."
        )
    return score


def _with_turn_rewards(score: Score, turn_rewards: Mapping[int, float]) -> Score:
    """Return the score with the rewards of the turns added. Raises WrongReturn if a turn has two rewards."""
    if twice := turn_rewards.keys() & score.turn_rewards.keys():
        raise WrongReturn(f"turn {min(twice)} has a reward in its Turn and another in the Score; leave one out.")
    return change_score(score, turn_rewards={**turn_rewards, **score.turn_rewards})


def _checked_turn(environment: MultiTurnEnvironment, turn: object) -> Turn:
    method = describe_method(environment, "step")
    if not isinstance(turn, Turn):
        raise WrongReturn(
            f"{method} returned {describe_wrong_type(turn)}; write `return Turn(messages=[…])` to continue, or "
            "`return Turn(score=Score(reward=…))` to end the rollout."
        )
    if turn.score is not None and not isinstance(turn.score, Score):
        raise WrongReturn(
            f"{method} returned a Turn whose score is {describe_wrong_type(turn.score)}; write `Turn(score=Score(…))`."
        )
    if isinstance(turn.messages, Score):
        raise WrongReturn(f"{method} returned a Turn whose messages are a Score; write `Turn(score=…)`.")
    if isinstance(turn.messages, str | bytes | Mapping) or not isinstance(turn.messages, Sequence):
        raise WrongReturn(
            f"{method} returned a Turn whose messages are {describe_wrong_type(turn.messages)}; write "
            '`Turn(messages=[{"role": "user", "content": …}])`.'
        )
    if turn.score is None and not turn.messages:
        raise WrongReturn(
            f"{method} returned a Turn with neither messages nor a score; add messages for the model to answer, or a "
            "score, which ends the rollout."
        )
    return turn
