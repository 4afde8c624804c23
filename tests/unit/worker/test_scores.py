"""The checks of scores with several rewards, rewards of turns, and a limit."""

from typing import Any, cast

import numpy as np
import pytest

from rollout import RolloutLimit, Score
from rollout.records.kinds import NamedReward
from rollout.worker.failures import ScoreError
from rollout.worker.scores import check_score


def test_the_reward_is_the_weighted_sum_of_the_named_rewards() -> None:
    given: dict[str, Any] = {"answer": np.float16(0.1), "format": 1}
    score = check_score(Score(rewards=given, weights={"format": 0.25}), "run", ())
    assert score.rewards == {"answer": NamedReward(float(np.float16(0.1)), 1.0), "format": NamedReward(1.0, 0.25)}
    assert score.reward == float(np.float16(0.1)) + 0.25


def test_turns_that_were_played_may_have_rewards() -> None:
    score = check_score(Score(1.0, turn_rewards=cast(Any, {0: 0.5, np.int64(2): True})), "run", {0, 1, 2})
    assert score.turn_rewards == {0: 0.5, 2: 1.0}


@pytest.mark.parametrize("limit", [RolloutLimit.TURNS, "turns"])
def test_a_score_can_name_the_limit_that_stopped_the_rollout(limit: Any) -> None:
    assert check_score(Score(0.0, limit=limit), "run", ()).limit is RolloutLimit.TURNS


def test_a_score_with_both_reward_and_rewards_cannot_be_created() -> None:
    with pytest.raises(ValueError, match="reward or rewards, not both"):
        Score(1.0, rewards={"answer": 1.0})


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        ({"rewards": {"a": float("nan")}}, "the reward 'a' is nan"),
        ({"rewards": {"a": 1.0}, "weights": {"b": 1.0}}, "there is a weight for 'b', but no reward with this name"),
        ({"rewards": {"a": 1e30}, "weights": {"a": 1e30}}, "the reward is 1e+60"),
        ({"rewards": {"a": None}}, "the reward 'a' is None"),
        ({"rewards": [1.0]}, "the rewards are a list"),
        ({"rewards": {1: 1.0, "1": 2.0}}, "two rewards have the name '1'"),
        ({"reward": "1"}, "the reward is '1'; expected a finite number"),
        ({"rewards": {"n" * 1001: 1.0}}, "has a name of 1,001 characters"),
        ({"reward": 1.0, "turn_rewards": [1.0]}, "turn_rewards is a list"),
        ({"reward": 1.0, "turn_rewards": {7: 1.0}}, "a reward for the turn 7, which was not played"),
        ({"reward": 1.0, "turn_rewards": {"0": 1.0}}, "a reward for the turn '0', which was not played"),
        ({"reward": 1.0, "turn_rewards": {0: "good"}}, "the reward of turn 0 is 'good'"),
        ({"reward": 1.0, "limit": "steps"}, "the limit is 'steps'; expected one of none, turns, tokens, context, time"),
        ({"reward": 1.0, "limit": []}, "the limit is []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_score_that_cannot_be_recorded_is_refused_with_its_reason(score: dict[str, Any], problem: str) -> None:
    with pytest.raises(ScoreError) as refused:
        check_score(Score(**score), "run", {0})
    assert problem in str(refused.value)
