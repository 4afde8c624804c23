"""Compares the end of a replay with the recorded end of its rollout."""

import math
import re
from collections.abc import Iterator, Mapping

from rollout.environments.base import ContextExhausted
from rollout.errors import flatten_exceptions
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.testing.recorded_model import RecordedEnd
from rollout.testing.replay_report import Difference
from rollout.trainer.trajectory import Trajectory
from rollout.worker.failures import describe_failure
from rollout.worker.scores import CheckedScore

_TOLERANCE = 1e-9
"""The tolerance for numbers, because the terms of a sum may be added in another order."""
_PLACE_IN_CODE = re.compile(r" \([^()\n]*, line \d+\)")
"""The place of a method in an error. It is ignored, because an edit above the method changes its line number."""


def compare_ends(
    trajectory: Trajectory, end: RecordedEnd, outcome: CheckedScore | BaseException, last_limit: RolloutLimit
) -> Iterator[Difference]:
    """Yield the differences between the recorded end and the end of the replay.

    Args:
        trajectory: the recorded rollout.
        end: how the recorded rollout ended.
        outcome: the score of the replay, or the error that the environment raised.
        last_limit: the limit that ended the last answer of the replay.
    """
    if isinstance(outcome, BaseException):
        yield from _compare_errors(trajectory, end, outcome)
    elif trajectory.status is not RolloutStatus.OK:
        text = f"the environment returns the reward {outcome.reward:g}; recorded: {end.description}"
        yield Difference("score", None, text)
    else:
        yield from _compare_scores(trajectory, outcome, last_limit)


def _compare_errors(trajectory: Trajectory, end: RecordedEnd, error: BaseException) -> Iterator[Difference]:
    failure = describe_failure(error)
    is_unscored = all(isinstance(leaf, ContextExhausted) for leaf in flatten_exceptions(error))
    if is_unscored and trajectory.status is RolloutStatus.UNSCORED:
        return
    if (
        not is_unscored
        and trajectory.status is RolloutStatus.FAILED
        and (_without_places(trajectory.error or {}) == _without_places(failure.as_record()))
    ):
        return
    text = f"the environment raises {failure.type}: {failure.message}; recorded: {end.description}"
    yield Difference("error", None, text, tuple((failure.traceback or "").splitlines()))


def _without_places(error: Mapping[str, str]) -> dict[str, str]:
    return {key: _PLACE_IN_CODE.sub("", text) for key, text in error.items()}


def _compare_scores(trajectory: Trajectory, score: CheckedScore, last_limit: RolloutLimit) -> Iterator[Difference]:
    yield from _compare_numbers("", {"reward": trajectory.reward or 0.0}, {"reward": score.reward})
    weights = {name: reward.weight for name, reward in trajectory.rewards.items()}
    yield from _compare_numbers(
        "reward ",
        {name: reward.value for name, reward in trajectory.rewards.items()},
        {name: reward.value for name, reward in score.rewards.items()},
    )
    yield from _compare_numbers(
        "weight of ", weights, {name: reward.weight for name, reward in score.rewards.items() if name in weights}
    )
    yield from _compare_numbers("reward of turn ", trajectory.turn_rewards, score.turn_rewards)
    yield from _compare_numbers("metric ", trajectory.metrics, score.metrics)
    limit = last_limit if score.limit is RolloutLimit.NONE else score.limit
    if limit is not trajectory.limit:
        yield Difference("score", None, f"limit: {limit}; recorded: {trajectory.limit}")


def _compare_numbers(
    kind: str, recorded: Mapping[str, float] | Mapping[int, float], today: Mapping[str, float] | Mapping[int, float]
) -> Iterator[Difference]:
    old, new = ({str(name): value for name, value in numbers.items()} for numbers in (recorded, today))
    for name in dict.fromkeys((*old, *new)):
        if name in old and name in new and math.isclose(old[name], new[name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            continue
        today_text, old_text = (f"{numbers[name]:g}" if name in numbers else "none" for numbers in (new, old))
        yield Difference("score", None, f"{kind}{name}: {today_text}; recorded: {old_text}")
