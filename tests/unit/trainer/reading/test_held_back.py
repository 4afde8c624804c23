"""Limits that do not train: their rollouts complete their groups, and are held back."""

from typing import Any

import pytest

from rollout.errors import ConfigurationError
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.trainer import ReaderSettings, Trajectory, advantages_of, check, rloo, samples
from rollout.trainer.reading.held_back import hold_back
from rollout.trainer.testing import put_all, read_all, scripted_rollout
from tests.unit.trainer.readers import read_groups, reader_of
from transports import Queue

LIMITS = {"g.0": RolloutLimit.NONE, "g.1": RolloutLimit.TOKENS, "g.2": RolloutLimit.CONTEXT}


async def put_group(queue: Queue) -> None:
    for rollout, limit in LIMITS.items():
        await put_all(queue, await scripted_rollout(rollout, group_size=len(LIMITS), limit=limit))


async def test_every_rollout_with_a_score_trains_by_default(queue: Queue) -> None:
    await put_group(queue)
    async with reader_of() as reader:
        found = await read_all(reader)
        assert reader.stats().held_back == 0
    assert {trajectory.rollout: trajectory.limit for trajectory in found} == LIMITS
    assert all(trajectory.trainable and not trajectory.held_back for trajectory in found)


async def test_a_rollout_with_an_untrained_limit_completes_its_group_and_does_not_train(queue: Queue) -> None:
    await put_group(queue)
    async with reader_of(ReaderSettings(untrained_limits=frozenset({"tokens"}))) as reader:
        (group,) = await read_groups(reader)
        stats = reader.stats()
    assert group.whole
    held_back = group.trajectories[1]
    assert [trajectory.held_back for trajectory in group.trajectories] == [False, True, False]
    assert (held_back.status, held_back.reward, held_back.trainable) == (RolloutStatus.OK, 1.0, False)
    assert samples(held_back) == []
    assert check(held_back) == []
    assert advantages_of(group, rloo).keys() == {"g.0", "g.2"}
    assert (stats.trajectories, stats.groups, stats.held_back) == (3, 1, 1)


@pytest.mark.parametrize("status", [RolloutStatus.UNSCORED, RolloutStatus.FAILED])
def test_a_rollout_without_a_score_is_not_held_back(status: RolloutStatus) -> None:
    trajectory = Trajectory("r", "E", "g", "g.0", 1, status, None, limit=RolloutLimit.TIME)
    assert not hold_back(trajectory, frozenset({RolloutLimit.TIME})).held_back


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (frozenset({"tokenz"}), "'tokenz' is not a limit"),
        (frozenset({"none"}), "'none' is not a limit"),
        ("tokens", "found the string 'tokens'"),
    ],
    ids=["unknown", "none", "text"],
)
def test_a_limit_that_does_not_exist_is_refused(limits: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected a set of turns, tokens, context, time.*{problem}"):
        ReaderSettings(untrained_limits=limits)


def test_names_of_limits_are_converted_to_limits() -> None:
    settings = ReaderSettings(untrained_limits=frozenset({"tokens", RolloutLimit.TIME}))
    assert settings.untrained_limits == {RolloutLimit.TOKENS, RolloutLimit.TIME}
    assert all(isinstance(limit, RolloutLimit) for limit in settings.untrained_limits)
