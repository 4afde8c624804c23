"""`play` with a mistake in the test or its environment: the error names it, and the test ends."""

import asyncio
import contextlib
from typing import Any, ClassVar

import pytest

from rollout.config.environment_class import EnvironmentUnusable
from rollout.environments.base import Environment, EnvironmentSettings, Model, Retry, Score
from rollout.records.task import Task
from rollout.testing import Answer, AnswerUnusable, OutOfAnswers, play
from rollout.testing.playing import play_at_once


class JudgedSettings(EnvironmentSettings):
    judge_up: bool = False
    strictness: int = 1


class Judged(Environment):
    Settings: ClassVar[type[EnvironmentSettings]] = JudgedSettings
    settings: JudgedSettings

    async def run(self, task: Task, model: Model) -> Score:
        await model.chat([{"role": "user", "content": "Say a word."}])
        if not self.settings.judge_up:
            raise Retry("the judge at port 9 does not answer")
        return Score(1.0)


class FailsToClose(Judged):
    def close(self) -> None:
        raise OSError("the sandbox is gone")


class HangsInClose(Judged):
    async def close(self) -> None:
        await asyncio.Event().wait()


class StaysInClose(Judged):
    async def close(self) -> None:
        await stay()


class Stays(Judged):
    async def run(self, task: Task, model: Model) -> Score:
        await stay()
        return Score(1.0)


async def stay() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_the_error_of_answers_that_are_used_up_after_a_retry_names_the_retry() -> None:
    with pytest.raises(OutOfAnswers) as refused:
        await play(Judged, answers=["moon"])
    text = str(refused.value)
    assert "asks for an answer in turn 0 of attempt 2, but all answers of the test are used (1)" in text
    assert "Attempt 1 ended with Retry: the judge at port 9 does not answer." in text
    assert "give a function as `answers`, which answers in all attempts" in text
    assert isinstance(refused.value.__cause__, Retry)


async def test_a_function_answers_in_all_attempts() -> None:
    played = await play(Judged, answers=lambda _: "moon")
    assert (played.attempts, played.trajectory.error) == (
        3,
        {"type": "Retry", "message": "the judge at port 9 does not answer"},
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"judge_upp": True}, "settings.judge_upp: unknown key; did you mean 'judge_up'?"),
        ({"strictness": "very"}, "settings.strictness: Input should be a valid integer"),
    ],
    ids=["key", "value"],
)
async def test_the_error_of_wrong_settings_lists_the_known_ones(settings: Any, problem: str) -> None:
    with pytest.raises(EnvironmentUnusable) as refused:
        await play(Judged, settings=settings, answers=["moon"])
    assert str(refused.value).startswith(problem)
    assert str(refused.value).endswith("Judged has the settings judge_up, strictness.")


@pytest.mark.parametrize(
    "call", [("count", "bolt"), ("count",), "count", ({"at": 1}, "count")], ids=["text", "name", "string", "turned"]
)
async def test_the_error_of_a_malformed_tool_call_has_the_correct_form(call: Any) -> None:
    with pytest.raises(
        AnswerUnusable, match=r"answers\[0\] has the tool call .*; expected \(name, \{argument: value\}\)"
    ):
        await play(Judged, answers=[Answer(tool_calls=[call])])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (FailsToClose, 'raise OSError("the sandbox is gone")'),
        (HangsInClose, "close did not end within 0.05 s"),
        (StaysInClose, "close ignores its cancellation and still runs"),
    ],
    ids=["raises", "hangs", "stays"],
)
def test_a_failure_of_close_is_reported(environment: type[Environment], text: str) -> None:
    played = play_at_once(environment, settings={"judge_up": True}, answers=["moon"])
    assert played.reward == 1.0
    assert text in str(played.close_failure)


async def test_the_close_of_every_attempt_counts() -> None:
    played = await play(FailsToClose, answers=lambda _: "moon")
    assert played.attempts == 3
    assert "the sandbox is gone" in str(played.close_failure)
    assert (await play(Judged, settings={"judge_up": True}, answers=["moon"])).close_failure is None


@pytest.mark.usefixtures("quick")
def test_an_environment_that_catches_its_cancellation_does_not_block_the_test() -> None:
    played = play_at_once(Stays, answers=[], timeout=0.2)
    assert "RolloutTimeout" in str(played.error)
