"""What a limit stops: a scored rollout stays scored, and an environment may score a conversation that is too long."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from rollout import (
    ContextExhausted,
    Environment,
    EnvironmentSettings,
    Model,
    MultiTurnEnvironment,
    Reply,
    RolloutLimit,
    Score,
    Task,
    Turn,
)
from rollout.records.endings import RolloutStatus
from rollout.records.messages import Message
from rollout.testing import embedded_policy, play

TASK = Task(id="0", index=0, seed=1)
SETTINGS = EnvironmentSettings()
CONTEXT = 300


class Endless(MultiTurnEnvironment):
    """Asks until the context is full."""

    async def reset(self, task: Task) -> Sequence[Message]:
        return [{"role": "user", "content": "Say something."}]

    async def step(self, reply: Reply) -> Turn:
        return Turn([{"role": "user", "content": "And now something else, please."}], reward=0.5)


class ScoredEndless(Endless):
    """Gives a score for as many turns as there was room for."""

    async def truncated(self, conversation: list[Message]) -> Score | None:
        return Score(rewards={"turns": float(sum(message["role"] == "assistant" for message in conversation))})


class WrongEndless(Endless):
    async def truncated(self, conversation: list[Message]) -> Score | None:
        return 1.0  # type: ignore[return-value]


class Summarises(Environment):
    """Begins again with a short conversation when the first one is full."""

    async def run(self, task: Task, model: Model) -> Score:
        message: Message = {"role": "user", "content": "x" * 5 * CONTEXT}
        with pytest.raises(ContextExhausted):
            await model.chat([message])
        await model.chat([{"role": "user", "content": "In short."}])
        return Score(1.0)


async def test_turns_and_the_environment_reward_what_fitted_into_the_context(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, max_model_len=CONTEXT) as policy:
        ended = (await play(ScoredEndless(SETTINGS), TASK, policy=policy)).trajectory
    turns = len(ended.steps)
    assert (ended.status, ended.limit, ended.reward) == (RolloutStatus.OK, RolloutLimit.CONTEXT, float(turns))
    assert turns > 1
    assert ended.turn_rewards == dict.fromkeys(range(turns), 0.5)
    assert ended.rewards["turns"].value == turns


async def test_a_conversation_that_nobody_scores_is_unscored(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, max_model_len=CONTEXT) as policy:
        ended = (await play(Endless(SETTINGS), TASK, policy=policy)).trajectory
    assert (ended.status, ended.limit, ended.reward) == (RolloutStatus.UNSCORED, RolloutLimit.CONTEXT, None)
    assert not ended.trainable


async def test_truncated_must_return_a_score_or_nothing(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, max_model_len=CONTEXT) as policy:
        ended = (await play(WrongEndless(SETTINGS), TASK, policy=policy)).trajectory
    assert ended.error is not None
    assert "WrongEndless.truncated" in ended.error["message"]
    assert "`return None` to leave the rollout unscored" in ended.error["message"]


async def test_a_rollout_that_goes_on_with_a_shorter_conversation_has_met_no_limit(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, max_model_len=CONTEXT) as policy:
        ended = (await play(Summarises(SETTINGS), TASK, policy=policy)).trajectory
    assert (ended.status, ended.limit) == (RolloutStatus.OK, RolloutLimit.NONE)


class RewardsTwice(Endless):
    async def step(self, reply: Reply) -> Turn:
        return Turn(score=Score(1.0, turn_rewards={reply.turn: 1.0}), reward=0.5)


class SaysItsLimit(Endless):
    async def step(self, reply: Reply) -> Turn:
        return Turn(score=Score(1.0, limit="turns"), reward=0.5)


async def test_a_turn_has_one_reward(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path) as policy:
        ended = (await play(RewardsTwice(SETTINGS), TASK, policy=policy)).trajectory
    assert ended.error is not None
    assert "turn 0 has a reward in its Turn and another in the Score" in ended.error["message"]


async def test_a_limit_that_the_environment_names_is_the_one_that_counts(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, sampling={"max_tokens": 2}) as policy:
        ended = (await play(SaysItsLimit(SETTINGS), TASK, policy=policy)).trajectory
    assert (ended.status, ended.limit, ended.turn_rewards) == (RolloutStatus.OK, RolloutLimit.TURNS, {0: 0.5})
