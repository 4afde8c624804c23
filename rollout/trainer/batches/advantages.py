"""Advantages of a group's trajectories over each other."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rollout.trainer.reading.groups import Group

Rewards = npt.NDArray[np.float64]
Estimator = Callable[[Rewards], Rewards]

_EPSILON = 1e-6


def grpo(rewards: Rewards) -> Rewards:
    """How many standard deviations (of its own group) a reward is above its group's mean; 0 if all are equal."""
    advantages: Rewards = (rewards - rewards.mean()) / (rewards.std() + _EPSILON)
    return advantages


def rloo(rewards: Rewards) -> Rewards:
    """How far a reward is above the mean of the *other* rewards; 0 if there is only one."""
    other_count = len(rewards) - 1
    return (rewards - rewards.mean()) * (len(rewards) / other_count) if other_count else np.zeros_like(rewards)


def advantages_of(group: Group, estimator: Estimator) -> dict[str, float]:
    """The advantage of each trainable trajectory, by its rollout; failed ones have no reward to compare with."""
    trainable = [trajectory for trajectory in group.trajectories if trajectory.trainable]
    if not trainable:
        return {}
    rewards = np.array([trajectory.reward for trajectory in trainable], np.float64)
    advantages = estimator(rewards).tolist()
    return {trajectory.rollout: advantage for trajectory, advantage in zip(trainable, advantages, strict=True)}
