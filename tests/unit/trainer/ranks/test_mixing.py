"""The mix of several queues: each has its exact share, also when another queue ends."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import ConfigurationError
from rollout.trainer.ranks.mixing import QueueMix

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1)


def take(mix: QueueMix, count: int) -> list[str]:
    taken = []
    for _ in range(count):
        taken.append(mix.next_queue())
        mix.count_group(taken[-1])
    return taken


@given(WEIGHTS)
def test_each_queue_gives_as_many_groups_as_its_weight_in_each_period(weights: dict[str, int]) -> None:
    mix = QueueMix(weights)
    assert Counter(take(mix, sum(weights.values()))) == weights
    assert Counter(take(mix, sum(weights.values()))) == weights


@given(WEIGHTS, st.integers(0, 50))
def test_a_restored_mix_continues_as_the_saved_one(weights: dict[str, int], before: int) -> None:
    mix, restored = QueueMix(weights), QueueMix(weights)
    take(mix, before)
    restored.load(mix.state())
    assert take(restored, 20) == take(mix, 20)


def test_the_others_share_the_part_of_a_paused_queue() -> None:
    mix = QueueMix({"a": 2, "b": 1, "c": 1})
    take(mix, 4)
    mix.pause("a")
    assert mix.paused == {"a"}
    assert Counter(take(mix, 10)) == {"b": 5, "c": 5}
    mix.pause("b")
    assert not mix.is_empty
    mix.pause("c")
    assert mix.is_empty


@given(WEIGHTS, st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=30))
def test_after_pauses_each_queue_has_its_share_again(weights: dict[str, int], pauses: list[tuple[str, int]]) -> None:
    mix = QueueMix(weights)
    for name, count in pauses:
        if name in weights and len(weights) > 1:
            mix.pause(name)
            take(mix, count)
            mix.resume(name)
    period = sum(weights.values())
    taken = Counter(take(mix, 10 * period))
    for name, weight in weights.items():
        assert abs(taken[name] - 10 * weight) <= len(weights) + 1


def test_a_choice_that_gives_no_group_changes_nothing() -> None:
    mix = QueueMix({"a": 1, "b": 1})
    assert [mix.next_queue(), mix.next_queue()] == ["a", "a"]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="the weight is"):
        QueueMix({"a": weight})


def test_no_queue_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no queue"):
        QueueMix({})
