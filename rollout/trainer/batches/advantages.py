"""Advantages of a group's trajectories over each other: one for each rollout, or one for each of its turns.

advantages_of(group, grpo)                      # by the outcome: every token of a rollout has the same advantage
by_turn = turn_advantages_of(group, grpo)       # by turn: an answer has the advantage of what came from then on
align_advantages(sample, by_turn[sample.rollout])
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rollout.trainer.batches.samples import TrainingSample
from rollout.trainer.reading.groups import Group
from rollout.trainer.trajectory import Trajectory

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
    """The advantage of each trainable trajectory, by its rollout; the others have no reward to compare with.

    Rewards of single answers do not count here; see `turn_advantages_of`.
    """
    trainable = _trainable(group)
    if not trainable:
        return {}
    rewards = np.array([trajectory.reward for trajectory in trainable], np.float64)
    advantages = estimator(rewards).tolist()
    return {trajectory.rollout: advantage for trajectory, advantage in zip(trainable, advantages, strict=True)}


def turn_advantages_of(group: Group, estimator: Estimator) -> dict[str, Rewards]:
    """The advantage of each turn of each trainable trajectory, by its rollout: one number for each of its `turns`.

    The return of a turn is the sum of the turn rewards from this turn on, plus the reward of the rollout. The estimator
    compares the returns of all rollouts at their first turns, then at their second ones, and so on; a rollout with
    fewer turns counts with the return of its last turn. Without turn rewards, each turn of a rollout has the advantage
    that `advantages_of` gives it.
    """
    trainable = _trainable(group)
    if not trainable:
        return {}
    returns = [_returns_by_turn(trajectory) for trajectory in trainable]
    turn_counts = [len(trajectory.turns) for trajectory in trainable]
    advantages = np.zeros((len(trainable), max(turn_counts)), np.float64)
    for place in range(max(turn_counts)):
        compared = [values[min(place, len(values) - 1)] for values in returns]
        advantages[:, place] = estimator(np.array(compared, np.float64))
    return {
        trajectory.rollout: advantages[row, :count]
        for row, (trajectory, count) in enumerate(zip(trainable, turn_counts, strict=True))
    }


def align_advantages(sample: TrainingSample, advantages_by_turn: Sequence[float] | Rewards) -> npt.NDArray[np.float32]:
    """Give each sampled token of a sample, truncated or not, the advantage of its turn, and 0 to all other tokens.

    Args:
        sample: a sample of the rollout.
        advantages_by_turn: one advantage for each of `sample.turns`, as `turn_advantages_of` returns them.

    Raises:
        ValueError: there are more or fewer advantages than turns.
    """
    if len(advantages_by_turn) != len(sample.turns):
        raise ValueError(
            f"{sample.rollout}: {len(advantages_by_turn)} advantages for {len(sample.turns)} turns. Give one for each "
            "of TrainingSample.turns, as turn_advantages_of returns them."
        )
    aligned = np.zeros(len(sample.token_ids), np.float32)
    is_sampled = sample.turn_index >= 0
    places = np.searchsorted(sample.turns, sample.turn_index[is_sampled])
    aligned[is_sampled] = np.asarray(advantages_by_turn, np.float32)[places]
    return aligned


def _trainable(group: Group) -> list[Trajectory]:
    return [trajectory for trajectory in group.trajectories if trajectory.trainable]


def _returns_by_turn(trajectory: Trajectory) -> Rewards:
    """The return of each turn; of a rollout that never asked the model its reward, which the others compare with."""
    rewards = [trajectory.turn_rewards.get(turn, 0.0) for turn in trajectory.turns] or [0.0]
    rewards[-1] += trajectory.reward or 0.0
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1]
