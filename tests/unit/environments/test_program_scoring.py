"""The three ways to score a program: a function, the output of a command, and the program's own reward."""

import asyncio
import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.environments.base import Retry, Score, WrongReturn
from rollout.environments.endpoint import PostedReward, Transcript
from rollout.environments.program_scoring import (
    RewardMissing,
    ScoreFunction,
    ScoreFunctionFailed,
    ScoreFunctionUnusable,
    ScoreOutputError,
    parse_score_output,
    score_from_posted,
)
from rollout.import_path import search_last
from rollout.records.task import Task

TASK = Task("0", 0, 1, {"answer": "42"})
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def call(function: Callable[..., Any]) -> Score:
    score = ScoreFunction("scores:function", function)
    return asyncio.run(score.call(TASK, Path("/work"), Transcript((), {}), 3))


def load(directory: Path, source: str, name: str = "right_answer") -> ScoreFunction:
    """Write a module with a name of its own into the directory, and load a function of it."""
    module = f"scores_of_{directory.name}"
    (directory / f"{module}.py").write_text(source)
    search_last(str(directory))
    return ScoreFunction.load(f"{module}:{name}", directory)


def test_a_function_gets_the_task_the_work_the_transcript_and_the_exit_code() -> None:
    received: list[tuple[object, ...]] = []

    def score(*arguments: object) -> int:
        received.append(arguments)
        return 1

    call(score)
    assert received == [(TASK, Path("/work"), Transcript((), {}), 3)]


def test_a_plain_function_runs_in_a_thread() -> None:
    def score(*_: object) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert call(score).reward == 0.0


def test_a_coroutine_function_runs_in_the_event_loop() -> None:
    async def score(*_: object) -> float:
        await asyncio.sleep(0)
        return 0.5

    assert call(score).reward == 0.5
    assert call(lambda *arguments: score(*arguments)).reward == 0.5


@pytest.mark.parametrize(
    ("returned", "reward"), [(True, 1.0), (0, 0.0), (0.5, 0.5), (np.float32(0.5), 0.5), (Score(reward=2.0), 2.0)]
)
def test_a_function_may_return_a_score_or_a_number(returned: object, reward: float) -> None:
    assert call(lambda *_: returned).reward == reward


@pytest.mark.parametrize(
    ("returned", "found"), [(None, "None"), ("1", "a str"), (math.nan, "nan"), (math.inf, "inf"), (10**400, "1000")]
)
def test_anything_else_that_a_function_returns_is_an_error_that_names_it(returned: object, found: str) -> None:
    with pytest.raises(
        WrongReturn, match=rf"^scores:function \(.*test_program_scoring\.py, line \d+\) returned {found}"
    ):
        call(lambda *_: returned)


async def call_failing(error: BaseException) -> None:
    def score(*_: object) -> float:
        raise error

    await ScoreFunction("scores:function", score).call(TASK, Path("/work"), Transcript((), {}), 0)


@pytest.mark.parametrize("error", [Retry("the judge is away"), ExceptionGroup("judges", [Retry("it is away")])])
async def test_a_retry_of_the_function_reaches_the_caller(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        await call_failing(error)
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "text"),
    [(SystemExit(3), "SystemExit: 3"), (KeyError("answer"), "KeyError: 'answer'")],
)
async def test_an_error_of_the_function_is_named_with_the_function(error: BaseException, text: str) -> None:
    with pytest.raises(ScoreFunctionFailed, match=f"^the score scores:function raised {text}$") as raised:
        await call_failing(error)
    assert raised.value.__cause__ is error


def test_a_function_is_imported_from_the_directory_of_the_yaml(tmp_path: Path) -> None:
    score = load(tmp_path, "def right_answer(task, work, transcript, exit_code):\n    return exit_code\n")
    assert asyncio.run(score.call(TASK, tmp_path, Transcript((), {}), 7)).reward == 7


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def right_anwser(task): ...", "has no 'right_answer'; did you mean 'right_anwser'?"),
        ("right_answer = 1", "is an int; expected a function that is called with (task, work, transcript, exit_code)."),
        ("class right_answer: ...", "is a class; expected"),
        ("def right_answer(task): ...", "cannot be called (too many positional arguments); expected"),
        ("def right_answer(*_):\n    yield 1", "has a `yield`, which makes it a generator; expected"),
        ("import no_such_module_here", "there is no module 'no_such_module_here'; install it"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_score_is_refused_when_it_is_loaded(tmp_path: Path, source: str, problem: str) -> None:
    with pytest.raises(ScoreFunctionUnusable, match=re.escape(problem)) as refused:
        load(tmp_path, source)
    assert str(refused.value).startswith("environment.score: ")


def test_a_module_with_the_name_of_another_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def right_answer(*_): return 1")
    with pytest.raises(ScoreFunctionUnusable, match="two modules have the name json"):
        ScoreFunction.load("json:right_answer", tmp_path)


@pytest.mark.parametrize("path", ["scores", "scores.right_answer", "scores:", "a b:c"])
def test_a_path_without_a_function_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ScoreFunctionUnusable, match=r"expected package\.module:function"):
        ScoreFunction.load(path, tmp_path)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("1", Score(reward=1.0)),
        ("3 passed\n\x1b[0m\n  0.5 \r\n\n", Score(reward=0.5)),
        ("10%\r100%\r-1e-3", Score(reward=-0.001)),
        ('{"reward": 1, "metrics": {"passed": 3}}', Score(reward=1.0, metrics={"passed": 3.0})),
        ('{"rewards": {"a": 1, "b": 2}, "weights": {"b": 0.5}}', Score(rewards={"a": 1, "b": 2}, weights={"b": 0.5})),
        ('{"reward": 0.5, "metrics": {"\u2028": 1}}', Score(reward=0.5, metrics={"\u2028": 1.0})),
    ],
)
def test_the_last_line_of_the_output_is_the_score(text: str, score: Score) -> None:
    assert parse_score_output(text) == score


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("all passed", "is neither a number nor an object of JSON: 'all passed'"),
        ("nan", "is neither a number nor an object of JSON"),
        ("1_000", "is neither a number nor an object of JSON"),
        ("٣", "is neither a number nor an object of JSON"),
        ("true", "is neither a number nor an object of JSON"),
        ("[1]", "is neither a number nor an object of JSON"),
        ("[" * 100_000, "is neither a number nor an object of JSON"),
        ("1e999", "has a wrong value: 'the number' is inf, not a finite number"),
        ("9" * 5000, "has a wrong value"),
        ('{"reward": NaN}', "has a wrong value: 'reward' is nan"),
        ('{"reward": 1e999}', "has a wrong value: 'reward' is inf"),
        ('{"reward": true}', "has a wrong value: 'reward' is True"),
        ('{"reward": "1"}', "has a wrong value: 'reward' is '1'"),
        ('{"reward": null}', "has a wrong value: 'reward' is None"),
        ('{"reward": 1, "metrics": {"a": []}}', "has a wrong value: 'metrics.a' is []"),
        ('{"reward": 1, "metrics": [1]}', "has metrics that are a list and not an object"),
        ('{"reward": 1, "reward": 2}', "is neither a number nor an object of JSON (it has a key twice)"),
        ('{"reward": 1, "rewards": {"a": 1}}', "needs either reward or rewards, not both"),
        ('{"metrics": {"a": 1}}', "needs either reward or rewards"),
        ('{"rewards": {}}', "has no reward in rewards"),
        ('{"reward": 1, "weights": {"a": 1}}', "has weights without rewards"),
        ('{"rewards": {"a": 1}, "weights": {"b": 1}}', "has a weight for 'b', but no reward with this name"),
        ('{"rewards": {"a": 1e308, "b": 1e308}}', "has rewards whose sum is not finite"),
        ('{"score": 1}', "has the unknown key 'score'"),
    ],
)
def test_a_wrong_last_line_is_shown_with_what_is_expected(line: str, problem: str) -> None:
    with pytest.raises(ScoreOutputError) as refused:
        parse_score_output(f"1.0\n{line}\n")
    message = str(refused.value)
    assert f"the last line of the score command {problem}" in message
    assert line[:20] in message
    assert "expected a number, " in message
    assert len(message) < 1000


@pytest.mark.parametrize("text", ["", " \n\t\r\n"])
def test_a_command_that_prints_nothing_has_no_score(text: str) -> None:
    with pytest.raises(ScoreOutputError, match="printed nothing; expected a number"):
        parse_score_output(text)


@given(st.text(), FINITE)
def test_every_finite_number_is_read_as_it_is_printed(before: str, reward: float) -> None:
    assert parse_score_output(f"{before}\n{reward!r}\n").reward == reward
    assert parse_score_output(f"{before}\n{json.dumps({'reward': reward})}").reward == reward


@given(st.text())
def test_every_output_is_a_finite_score_or_a_named_error(text: str) -> None:
    try:
        score = parse_score_output(text)
    except ScoreOutputError:
        return
    assert math.isfinite(score.reward)


def test_the_reward_that_a_program_sent_is_its_score() -> None:
    assert score_from_posted(PostedReward(0.5, {}, {"files": 2.0})) == Score(reward=0.5, metrics={"files": 2.0})
    assert score_from_posted(PostedReward(None, {"a": 1.0, "b": 2.0}, {})) == Score(rewards={"a": 1.0, "b": 2.0})


def test_a_program_that_sent_no_reward_has_no_score() -> None:
    with pytest.raises(RewardMissing, match=r"^the program sent no reward, but .*POST \$OPENAI_BASE_URL/reward"):
        score_from_posted(None)
