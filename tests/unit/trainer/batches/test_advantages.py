"""Advantages of rollouts within their group."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.records.endings import RolloutStatus
from rollout.trainer import Group, Trajectory, advantages_of, grpo, rloo
from rollout.trainer.batches.advantages import Estimator

rewards = st.lists(st.floats(-100, 100), min_size=1, max_size=16)


def group_of(rewards: Sequence[float | None]) -> Group:
    trajectories = tuple(
        Trajectory("r", "E", "g", f"g.{at}", 1, RolloutStatus.FAILED if reward is None else RolloutStatus.OK, reward)
        for at, reward in enumerate(rewards)
    )
    return Group("g", len(rewards), trajectories)


@given(rewards)
def test_rloo_is_the_reward_minus_the_mean_of_the_others(rewards: list[float]) -> None:
    found = rloo(np.array(rewards))
    for at, reward in enumerate(rewards):
        others = rewards[:at] + rewards[at + 1 :]
        assert found[at] == pytest.approx(reward - sum(others) / len(others) if others else 0.0, abs=1e-9)


@given(rewards)
def test_grpo_has_mean_zero_and_deviation_one(rewards: list[float]) -> None:
    found = grpo(np.array(rewards))
    assert found.sum() == pytest.approx(0.0, abs=1e-6)
    spread = np.std(rewards)
    assert found.std() == pytest.approx(spread / (spread + 1e-6), abs=1e-6)


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_equal_rewards_have_no_advantage(estimator: Estimator) -> None:
    assert estimator(np.array([0.5, 0.5, 0.5])).tolist() == [0.0, 0.0, 0.0]


def test_failed_members_are_left_out_of_the_comparison() -> None:
    assert advantages_of(group_of([1.0, None, 0.0]), rloo) == {"g.0": 1.0, "g.2": -1.0}
    assert advantages_of(group_of([None, None]), grpo) == {}
