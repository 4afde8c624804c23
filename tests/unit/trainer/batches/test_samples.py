"""The turn and the reward of each token of a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from rollout.records.kinds import RolloutFinished, RolloutStarted, Step
from rollout.records.wire import decode_record
from rollout.trainer import Trajectory, align_advantages, samples
from rollout.trainer.testing import scripted_rollout
from rollout.trainer.trajectory import assemble


async def trajectory_of(
    turns: Sequence[int], turn_rewards: Mapping[int, float], parents: Mapping[int, int] | None = None
) -> Trajectory:
    """Return a rollout whose turns have these numbers; `parents` has the parent nodes that are not the last node."""
    packets = await scripted_rollout(turns=len(turns), turn_rewards=turn_rewards, question_tokens=3, answer_tokens=2)
    started, *steps, finished = [decode_record(packet.frames) for packet in packets]
    assert isinstance(started, RolloutStarted)
    assert isinstance(finished, RolloutFinished)
    numbered = []
    for at, (turn, step) in enumerate(zip(turns, steps, strict=True)):
        assert isinstance(step, Step)
        parent = (parents or {}).get(at, step.parent)
        # Each skipped node has three tokens.
        prompt_length = step.prompt_length - 3 * (step.parent - parent)
        numbered.append(replace(step, turn=turn, parent=parent, prompt_length=prompt_length))
    return assemble(started, numbered, finished)


async def test_tokens_have_their_turn_and_the_last_of_an_answer_its_reward() -> None:
    (sample,) = samples(await trajectory_of([0, 1], {0: 0.5, 1: -2.0}))
    assert sample.turn_index.tolist() == [-1, -1, -1, -1, 0, 0, -1, -1, -1, -1, 1, 1]
    assert sample.token_rewards.tolist() == [0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, -2.0]
    assert sample.turns == (0, 1)
    assert sample.turn_index.dtype == np.int32
    assert sample.token_rewards.dtype == np.float32


async def test_a_turn_without_a_reward_has_zeros() -> None:
    (sample,) = samples(await trajectory_of([0, 1], {}))
    assert not sample.token_rewards.any()


async def test_the_number_of_a_failed_turn_is_missing() -> None:
    (sample,) = samples(await trajectory_of([1, 5], {5: 1.0}))
    assert sample.turns == (1, 5)
    assert sample.turn_index[sample.mask].tolist() == [1, 1, 5, 5]
    assert sample.token_rewards[sample.mask].tolist() == [0, 0, 0, 1.0]


async def test_an_answer_in_two_branches_has_its_reward_in_both_and_trains_in_one() -> None:
    first, second = samples(await trajectory_of([0, 1, 2], {0: 1.0, 1: 2.0, 2: 4.0}, parents={2: 1}))
    assert first.token_rewards[first.turn_index >= 0].tolist() == [0, 1.0, 0, 2.0]
    assert second.token_rewards[second.turn_index >= 0].tolist() == [0, 1.0, 0, 4.0]
    assert first.turns == second.turns == (0, 1, 2)
    assert sum(sample.token_rewards[sample.mask].sum() for sample in (first, second)) == 7.0


async def test_a_truncated_sample_keeps_its_turns_and_loses_the_reward_of_a_cut_answer() -> None:
    (sample,) = samples(await trajectory_of([0, 1], {0: 0.5, 1: -2.0}))
    cut = sample.truncated(11)
    assert cut.turn_index.tolist() == sample.turn_index[:11].tolist()
    assert cut.token_rewards.sum() == 0.5
    assert cut.turns == (0, 1)


async def test_advantages_of_turns_are_aligned_to_their_sampled_tokens() -> None:
    first, second = samples(await trajectory_of([1, 5, 6], {}, parents={2: 1}))
    advantages = [0.5, -1.0, 2.0]
    assert align_advantages(first, advantages).tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, -1.0, -1.0]
    assert align_advantages(second, advantages).tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 2.0, 2.0]
    cut = align_advantages(second.truncated(11), np.array(advantages))
    assert cut.tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 2.0]
    assert cut.dtype == np.float32


async def test_a_wrong_number_of_advantages_is_refused() -> None:
    (sample,) = samples(await trajectory_of([1, 5], {}))
    with pytest.raises(ValueError, match=r"000000\.0: there are 6 advantages for 2 turns"):
        align_advantages(sample, np.zeros(6))


async def test_a_held_back_trajectory_has_no_samples() -> None:
    trajectory = await trajectory_of([0], {})
    assert trajectory.trainable
    assert samples(replace(trajectory, held_back=True)) == []
