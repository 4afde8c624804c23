"""Advantages by turn: the return from a turn on is compared with those of the other rollouts at the same turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.records.endings import RolloutStatus
from rollout.records.kinds import PromptSource, RecordHeader, Step
from rollout.records.messages import FinishReason
from rollout.trainer import Group, Trajectory, advantages_of, grpo, rloo, turn_advantages_of
from rollout.trainer.batches.advantages import Estimator


@dataclass(frozen=True)
class Member:
    """A rollout of a group: its reward, and its turns with their rewards."""

    reward: float | None
    turns: Mapping[int, float | None]


def group_of(members: Sequence[Member]) -> Group:
    return Group("g", len(members), tuple(trajectory_of(f"g.{at}", member) for at, member in enumerate(members)))


def trajectory_of(rollout: str, member: Member) -> Trajectory:
    header = RecordHeader("r", "E", "g", rollout, 1, 0)
    steps = [Step(header, turn, -1, 0, (), {}, PromptSource.FIRST, 0, b"", FinishReason.STOP) for turn in member.turns]
    status = RolloutStatus.FAILED if member.reward is None else RolloutStatus.OK
    turn_rewards = {turn: reward for turn, reward in member.turns.items() if reward is not None}
    return Trajectory("r", "E", "g", rollout, 1, status, member.reward, steps=tuple(steps), turn_rewards=turn_rewards)


numbers = st.floats(-10, 10)
turn_numbers = st.lists(st.integers(0, 9), unique=True, max_size=4)


def members(turn_rewards: st.SearchStrategy[float | None]) -> st.SearchStrategy[list[Member]]:
    """Make members with or without a score; their turns have any order, and may miss numbers."""
    turns = turn_numbers.flatmap(lambda turns: st.fixed_dictionaries(dict.fromkeys(turns, turn_rewards)))
    return st.lists(st.builds(Member, st.none() | numbers, turns), min_size=1, max_size=5)


@given(members(st.none()), st.sampled_from([grpo, rloo]))
def test_without_turn_rewards_each_turn_has_the_advantage_of_its_rollout(
    given_members: list[Member], estimator: Estimator
) -> None:
    group = group_of(given_members)
    by_rollout, by_turn = advantages_of(group, estimator), turn_advantages_of(group, estimator)
    assert {rollout: values.tolist() for rollout, values in by_turn.items()} == {
        rollout: [advantage] * len(given_members[int(rollout[2:])].turns) for rollout, advantage in by_rollout.items()
    }


@given(members(st.none() | numbers))
def test_a_turn_is_compared_by_its_return(given_members: list[Member]) -> None:
    found = turn_advantages_of(group_of(given_members), rloo)
    scored = {f"g.{at}": member for at, member in enumerate(given_members) if member.reward is not None}
    assert found.keys() == scored.keys()
    for rollout, member in scored.items():
        assert len(found[rollout]) == len(member.turns)
        for place in range(len(member.turns)):
            others = [slow_return(other, place) for name, other in scored.items() if name != rollout]
            above = slow_return(member, place) - sum(others) / len(others) if others else 0.0
            assert found[rollout][place] == pytest.approx(above, abs=1e-9)


def slow_return(member: Member, place: int) -> float:
    """Return the rewards of a rollout from its turn at this place on, or from its last turn."""
    turns = sorted(member.turns)
    rest = turns[min(place, len(turns) - 1) :] if turns else []
    return (member.reward or 0.0) + sum(member.turns[turn] or 0.0 for turn in rest)


def test_a_turn_reward_counts_only_for_its_turn_and_earlier_ones() -> None:
    group = group_of([Member(1.0, {0: 2.0, 1: None, 2: 1.0}), Member(0.0, {0: None, 1: None, 2: None})])
    found = turn_advantages_of(group, rloo)
    assert found["g.0"].tolist() == [4.0, 2.0, 2.0]
    assert found["g.1"].tolist() == [-4.0, -2.0, -2.0]


def test_a_shorter_rollout_counts_with_the_return_of_its_last_turn() -> None:
    group = group_of([Member(1.0, {0: 1.0, 1: 0.5}), Member(0.0, {0: None, 1: None, 2: 4.0})])
    found = turn_advantages_of(group, rloo)
    assert found["g.0"].tolist() == [2.5 - 4.0, 1.5 - 4.0]
    assert found["g.1"].tolist() == [4.0 - 2.5, 4.0 - 1.5, 4.0 - 1.5]


def test_a_rollout_without_turns_counts_for_the_others_and_has_no_advantages() -> None:
    found = turn_advantages_of(group_of([Member(1.0, {}), Member(0.0, {0: 3.0})]), rloo)
    assert {rollout: values.tolist() for rollout, values in found.items()} == {"g.0": [], "g.1": [2.0]}


def test_a_rollout_that_is_held_back_is_left_out_of_the_comparison() -> None:
    group = group_of([Member(1.0, {0: None}), Member(9.0, {0: 9.0}), Member(0.0, {0: None})])
    first, second, third = group.trajectories
    held_back = replace(group, trajectories=(first, replace(second, held_back=True), third))
    assert {name: values.tolist() for name, values in turn_advantages_of(held_back, rloo).items()} == {
        "g.0": [1.0],
        "g.2": [-1.0],
    }
    assert advantages_of(held_back, rloo) == {"g.0": 1.0, "g.2": -1.0}


def test_a_group_without_scores_has_no_advantages() -> None:
    assert turn_advantages_of(group_of([Member(None, {0: None}), Member(None, {})]), grpo) == {}


def test_the_estimator_sees_the_returns_of_all_rollouts_at_one_turn_at_a_time() -> None:
    seen: list[list[float]] = []

    def remember(returns: np.ndarray) -> np.ndarray:
        seen.append(returns.tolist())
        return returns

    turn_advantages_of(group_of([Member(0.0, {2: 1.0, 7: 2.0}), Member(1.0, {0: None})]), remember)
    assert seen == [[3.0, 1.0], [2.0, 1.0]]
