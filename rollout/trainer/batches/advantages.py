"""Computes the advantages within a group: one for each rollout, or one for each turn of each rollout.

advantages_of(group, grpo)                            # every token of a rollout has the same advantage
by_turn = turn_advantages_of(group, grpo)             # every token of a turn has the same advantage
align_advantages(sample, by_turn[sample.rollout])     # an array with one advantage for each token
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
    """Return how many standard deviations each reward is above the mean of its group; 0 if all are equal."""
    advantages: Rewards = (rewards - rewards.mean()) / (rewards.std() + _EPSILON)
    return advantages


def rloo(rewards: Rewards) -> Rewards:
    """Return the difference between each reward and the mean of the *other* rewards; 0 if there is only one reward."""
    other_count = len(rewards) - 1
    return (rewards - rewards.mean()) * (len(rewards) / other_count) if other_count else np.zeros_like(rewards)


def advantages_of(group: Group, estimator: Estimator) -> dict[str, float]:
    """Return the advantage of each trainable trajectory, by `Trajectory.rollout`.

    This function ignores turn rewards; `turn_advantages_of` uses them.
    """
    trainable = _trainable(group)
    if not trainable:
        return {}
    rewards = np.array([trajectory.reward for trajectory in trainable], np.float64)
    advantages = estimator(rewards).tolist()
    return {trajectory.rollout: advantage for trajectory, advantage in zip(trainable, advantages, strict=True)}


def turn_advantages_of(group: Group, estimator: Estimator) -> dict[str, Rewards]:
    """Return an array with the advantage of each turn of each trainable trajectory, by `Trajectory.rollout`.

    An array has one number for each turn in `Trajectory.turns`. The return of a turn is the sum of the rewards of this
    turn and all later turns, plus the reward of the rollout. The estimator compares the returns of all first turns,
    then those of all second turns, and so on. If a rollout has fewer turns, the return of its last turn is compared.
    If there are no turn rewards, each turn has the advantage that `advantages_of` computes for the rollout.
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
    """Return an array with one number for each token: the advantage of its turn, or 0 if it was not sampled.

    Args:
        sample: a sample of the rollout; it may be truncated.
        advantages_by_turn: one advantage for each of `sample.turns`, as `turn_advantages_of` returns them.

    Raises:
        ValueError: there are more or fewer advantages than turns.
    """
    if len(advantages_by_turn) != len(sample.turns):
        raise ValueError(
            f"{sample.rollout}: there are {len(advantages_by_turn)} advantages for {len(sample.turns)} turns. Pass one "
            "advantage for each turn in TrainingSample.turns, as turn_advantages_of() returns them."
        )
    aligned = np.zeros(len(sample.token_ids), np.float32)
    is_sampled = sample.turn_index >= 0
    places = np.searchsorted(sample.turns, sample.turn_index[is_sampled])
    aligned[is_sampled] = np.asarray(advantages_by_turn, np.float32)[places]
    return aligned


def _trainable(group: Group) -> list[Trajectory]:
    """Return the trajectories of the group that train."""
    return [trajectory for trajectory in group.trajectories if trajectory.trainable]


def _returns_by_turn(trajectory: Trajectory) -> Rewards:
    """Compute the return of each turn. A rollout without turns counts as one turn with the rollout's reward."""
    rewards = [trajectory.turn_rewards.get(turn, 0.0) for turn in trajectory.turns] or [0.0]
    rewards[-1] += trajectory.reward or 0.0
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1]
