"""Rollouts that a limit stops: which ones have a score, and how an environment scores a full context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from rollout.trainer import Trajectory, check

TASK = Task(id="0", index=0, seed=1)
CONTEXT = 300


async def played(kind: type[Environment], directory: Path, **options: Any) -> Trajectory:
    async with embedded_policy(directory, **options) as policy:
        return (await play(kind(EnvironmentSettings()), TASK, policy=policy)).trajectory


class Endless(MultiTurnEnvironment):
    """Asks until the context is full."""

    async def reset(self, task: Task) -> Sequence[Message]:
        return [{"role": "user", "content": "Say something."}]

    async def step(self, reply: Reply) -> Turn:
        return Turn([{"role": "user", "content": "And now something else, please."}], reward=0.5)


class ScoredEndless(Endless):
    """Scores the number of turns that fitted into the context."""

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


async def test_the_turns_that_fitted_into_the_context_have_rewards_and_a_score(tmp_path: Path) -> None:
    ended = await played(ScoredEndless, tmp_path, max_model_len=CONTEXT)
    turns = len(ended.steps)
    assert (ended.status, ended.limit, ended.reward) == (RolloutStatus.OK, RolloutLimit.CONTEXT, float(turns))
    assert turns > 1
    assert ended.turn_rewards == dict.fromkeys(range(turns), 0.5)
    assert ended.rewards["turns"].value == turns


async def test_a_full_context_without_a_score_is_unscored(tmp_path: Path) -> None:
    ended = await played(Endless, tmp_path, max_model_len=CONTEXT)
    assert (ended.status, ended.limit, ended.reward) == (RolloutStatus.UNSCORED, RolloutLimit.CONTEXT, None)
    assert not ended.trainable
    assert ended.steps
    assert check(ended) == []


async def test_truncated_must_return_a_score_or_none(tmp_path: Path) -> None:
    ended = await played(WrongEndless, tmp_path, max_model_len=CONTEXT)
    assert ended.error is not None
    assert "WrongEndless.truncated" in ended.error["message"]
    assert "`return None` to leave the rollout unscored" in ended.error["message"]


async def test_a_rollout_that_goes_on_with_a_shorter_conversation_has_no_limit(tmp_path: Path) -> None:
    ended = await played(Summarises, tmp_path, max_model_len=CONTEXT)
    assert (ended.status, ended.limit) == (RolloutStatus.OK, RolloutLimit.NONE)


class RewardsTwice(Endless):
    async def step(self, reply: Reply) -> Turn:
        return Turn(score=Score(1.0, turn_rewards={reply.turn: 1.0}), reward=0.5)


class SaysItsLimit(Endless):
    async def step(self, reply: Reply) -> Turn:
        return Turn(score=Score(1.0, limit="turns"), reward=0.5)


async def test_two_rewards_of_a_turn_are_an_error(tmp_path: Path) -> None:
    ended = await played(RewardsTwice, tmp_path)
    assert ended.error is not None
    assert "turn 0 has a reward in its Turn and another in the Score" in ended.error["message"]


async def test_a_limit_that_the_environment_names_replaces_ours(tmp_path: Path) -> None:
    ended = await played(SaysItsLimit, tmp_path, sampling={"max_tokens": 2})
    assert (ended.status, ended.limit, ended.turn_rewards) == (RolloutStatus.OK, RolloutLimit.TURNS, {0: 0.5})
