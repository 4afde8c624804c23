"""An error of an environment fails one rollout, and its reason can be written as text."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from rollout.environments.base import Score
from rollout.errors import TooManyExceptions, printable_error
from rollout.rundir.claims import Claims
from rollout.trainer import check
from rollout.worker.failures import Failure, ScoreError, describe_failure
from rollout.worker.scores import check_score
from tests.unit.worker.harness import WorkerFactory
from transports import QueueError

HALF = "\ud83d"
"""Half of a surrogate pair."""


class Unprintable(Exception):
    """Cannot be written as text."""

    def __str__(self) -> str:
        raise GeneratorExit


class Text(str):
    """A subclass of `str`, which msgpack does not write."""

    __slots__ = ()


class SaysText(Exception):
    def __str__(self) -> str:
        return Text("a text of a class of its own")


class TwoNumbers:
    """Fails like a tensor of torch with two elements."""

    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")


class NotANumber:
    def __float__(self) -> float:
        raise GeneratorExit


def raises(error: BaseException) -> Callable[[], Score]:
    def play() -> Score:
        raise error

    return play


ENDINGS: Mapping[str, tuple[Callable[[], Any], str, str]] = {
    "a surrogate in a text": (raises(ValueError(f"cut {HALF}")), "ValueError", r"cut \ud83d"),
    "no text": (raises(Unprintable()), "Unprintable", "(the exception cannot be shown as text)"),
    "a text of another class": (raises(SaysText()), "SaysText", "a text of a class of its own"),
    "an exit": (raises(SystemExit(3)), "SystemExit", "3"),
    "the end of a generator": (raises(GeneratorExit()), "GeneratorExit", ""),
    "an error of another queue": (raises(QueueError("mine")), "QueueError", "mine"),
    "a surrogate in a name": (lambda: Score(10**400, {HALF: 1.0}), "ScoreError", "the reward is 1000"),
    "a reward that raises": (lambda: Score(NotANumber()), "GeneratorExit", ""),  # type: ignore[arg-type]
}


async def test_an_error_fails_only_the_rollout_that_raises_it(workers: WorkerFactory) -> None:
    endings: Iterator[Callable[[], Any]]
    endings = iter([*(ending for ending, _, _ in ENDINGS.values()), lambda: Score(1.0, {HALF: 2.0})])

    async def play(*_: object) -> Any:
        return next(endings)()

    ended = await workers.play_one_task(play, group_size=len(ENDINGS) + 1, concurrency=1)
    *failed, well_ended = ended.values()
    for trajectory, (_, kind, message) in zip(failed, ENDINGS.values(), strict=True):
        assert trajectory.error is not None
        assert trajectory.error["type"] == kind
        assert message in trajectory.error["message"]
    assert well_ended.metrics == {r"\ud83d": 2.0}
    assert all(check(trajectory) == [] for trajectory in ended.values())
    outcomes = Claims(workers.directory / "claims").new_outcomes(set())
    assert sorted(outcome.status for outcome in outcomes) == ["failed"] * len(ENDINGS) + ["ok"]


@pytest.mark.parametrize("is_raised", [True, False])
async def test_an_environment_that_cancels_itself_fails(workers: WorkerFactory, *, is_raised: bool) -> None:
    async def cancel(*_: object) -> Score:
        if is_raised:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        raise AssertionError

    error = (await workers.play_one_task(cancel))["0.0"].error
    assert error is not None
    assert error["message"] == "the environment raised a CancelledError, although nobody cancelled its rollout"


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        (10**400, "the reward is 1000"),
        (10**5000, "the reward is an int; expected a finite number"),
        (TwoNumbers(), "the reward is <"),
        (np.zeros(2), "the reward is array"),
        ("x" * 1000, "xxx...xxx"),
        (None, "the reward is None"),
        (np.array([[1.0], [2.0]]), "give value.item()"),
        (1e35, "the reward is 1e+35; expected a number from -1e+30 to 1e+30"),
    ],
    ids=["integer", "long integer", "tensor", "array", "text", "none", "column", "too large"],
)
def test_a_reward_that_is_not_a_number_is_refused(reward: Any, problem: str) -> None:
    with pytest.raises(ScoreError, match=r"run returned a Score that cannot be used: ") as refused:
        check_score(Score(reward), "run", ())
    assert problem in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("number", [1, True, np.float32(1), np.array([1.0]).sum(), np.bool_(True)])
def test_a_number_of_any_type_becomes_a_plain_number(number: Any) -> None:
    score = check_score(Score(number, {5: number}), "run", ())  # type: ignore[dict-item]
    assert (score.reward, score.metrics) == (1.0, {"5": 1.0})


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({str(number): 1.0 for number in range(1001)}, "there are more than 1,000 metrics"),
        ({"n" * 1001: 1.0}, "has a name of 1,001 characters; use at most 1,000 characters"),
    ],
)
def test_too_many_metrics_and_too_long_names_are_refused(metrics: Any, problem: str) -> None:
    with pytest.raises(ScoreError, match=problem):
        check_score(Score(1.0, metrics), "run", ())


def graph_of_groups(levels: int, members: int) -> BaseException:
    error: BaseException = ValueError("the innermost")
    for _ in range(levels):
        error = BaseExceptionGroup("again", [error] * members)
    return error


@pytest.mark.parametrize("error", [graph_of_groups(14, 12), graph_of_groups(600, 1)])
def test_a_group_with_too_many_exceptions_is_reported_without_them(error: BaseException) -> None:
    assert isinstance(printable_error(error), TooManyExceptions)


def test_a_long_chain_of_causes_is_cut() -> None:
    error: BaseException = ValueError("0")
    for number in range(5000):
        following = ValueError(str(number))
        following.__cause__ = following.__context__ = error
        error = following
    failure = describe_failure(printable_error(error))
    assert failure.message == "4999"
    assert failure.full_traceback.count("ValueError: ") == 50


def test_an_exception_whose_attributes_raise_is_shown_without_its_traceback() -> None:
    class Hostile(Exception):
        @property
        def __notes__(self) -> Any:  # type: ignore[override]
            raise GeneratorExit

    assert describe_failure(Hostile("the text")) == Failure("Hostile", "the text", None, "the text")
