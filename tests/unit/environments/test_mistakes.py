"""Mistakes in an environment's code: each fails one rollout, and the error says what to write instead."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.environments.base import Environment, EnvironmentSettings, Model, Reply, Score, WrongReturn
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.records.messages import FinishReason, Message
from rollout.records.task import Task
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy, play

QUESTION: Message = {"role": "user", "content": "Heads or tails?"}
TASK = Task("0", 0, 1)


class AnswersHeads(Model):
    """A model that needs no engine."""

    async def chat(self, messages: list[Message], **_: object) -> Reply:
        return Reply({"role": "assistant", "content": "heads"}, "heads", FinishReason.STOP)


class Coin(MultiTurnEnvironment):
    """Returns what a test sets."""

    first: Any = (QUESTION,)
    turn: Any = None

    async def reset(self, task: Task) -> Sequence[Message]:
        return self.first  # type: ignore[no-any-return]

    async def step(self, reply: Reply) -> Turn:
        return self.turn  # type: ignore[no-any-return]


async def forgotten() -> Any:
    raise AssertionError("never awaited")


def wrong_return(**returned: Any) -> str:
    coin = Coin(EnvironmentSettings())
    for name, value in returned.items():
        setattr(coin, name, value)
    with pytest.raises(WrongReturn) as refused:
        asyncio.run(coin.run(TASK, AnswersHeads()))
    return str(refused.value)


@pytest.mark.parametrize("first", ["Heads or tails?", QUESTION, None, 5], ids=repr)
def test_the_error_of_a_reset_without_a_list_has_its_line_and_the_correct_form(first: object) -> None:
    message = wrong_return(first=first)
    kind = "None" if first is None else type(first).__name__
    assert re.match(rf"Coin\.reset \(.+test_mistakes\.py, line \d+\) returned (an? )?{kind}; write `return \[", message)


def test_a_reset_may_return_any_iterable_of_messages() -> None:
    coin = Coin(EnvironmentSettings())
    coin.first, coin.turn = (dict(QUESTION) for _ in range(1)), Turn(score=Score(1.0))
    assert asyncio.run(coin.run(TASK, AnswersHeads())) == Score(1.0)


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        (None, "returned None; write `return Turn(messages=[…])` to continue, or `return Turn(score="),
        ([QUESTION], "returned a list; write `return Turn(messages=[…])` to continue"),
        (Score(1.0), "returned a Score; write `return Turn(messages=[…])` to continue"),
        (Turn(score=1.0), "returned a Turn whose score is a float; write `Turn(score=Score(…))`."),  # type: ignore[arg-type]
        (Turn("again"), "returned a Turn whose messages are a str; write `Turn(messages=[{"),  # type: ignore[arg-type]
        (Turn(Score(1.0)), "returned a Turn whose messages are a Score; write `Turn(score=…)`."),  # type: ignore[arg-type]
        (Turn(), "returned a Turn with neither messages nor a score; add messages"),
    ],
)
def test_the_error_of_a_step_without_a_turn_has_its_line_and_the_correct_form(turn: object, problem: str) -> None:
    message = wrong_return(turn=turn)
    assert re.match(r"Coin\.step \(.+test_mistakes\.py, line \d+\) returned ", message)
    assert problem in message


@pytest.mark.parametrize("method", ["first", "turn"])
def test_the_error_of_a_returned_coroutine_names_the_call_without_await(method: str) -> None:
    assert "returned a coroutine (write `await` before forgotten(…)); write" in wrong_return(**{method: forgotten()})


class Plays(Environment):
    """Plays the coroutine that a test gives it."""

    def __init__(self, playing: Callable[[Model], Awaitable[Any]]) -> None:
        super().__init__(EnvironmentSettings())
        self._playing = playing

    async def run(self, task: Task, model: Model) -> Score:
        return await self._playing(model)  # type: ignore[no-any-return]


@pytest.fixture
async def policy(tmp_path: Path) -> AsyncIterator[PolicyClient]:
    async with embedded_policy(tmp_path) as made:
        yield made


async def error_of(environment: Environment, policy: PolicyClient) -> Mapping[str, str]:
    error = (await play(environment, TASK, policy=policy)).trajectory.error
    assert error is not None
    return error


async def get_text(model: Model) -> Score:
    reply: Any = model.chat([QUESTION])
    return Score(float(reply.text == "heads"))


async def adds_it(model: Model) -> Score:
    more: Any = forgotten()
    return Score(1.0 + more)


async def in_the_conversation(model: Model) -> Score:
    answer: Any = model.chat([QUESTION])
    await model.chat([QUESTION, answer])
    raise AssertionError


async def in_the_content(model: Model) -> Score:
    await model.chat([{"role": "user", "content": forgotten()}])
    raise AssertionError


async def as_the_reward(model: Model) -> Score:
    return Score(forgotten())  # type: ignore[arg-type]


async def as_the_score(model: Model) -> Any:
    return forgotten()


async def unused(model: Model) -> Score:
    model.chat([dict(QUESTION)])  # type: ignore[unused-coroutine]
    return Score(1.0)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("playing", "kind", "problem"),
    [
        (get_text, "AwaitForgotten", "this line uses a coroutine (write `await` before model.chat(…)): 'coroutine'"),
        (adds_it, "AwaitForgotten", "this line uses a coroutine (write `await` before forgotten(…)): unsupported"),
        (in_the_conversation, "MessageError", "messages[1] is a coroutine (write `await` before model.chat(…)); exp"),
        (in_the_content, "MessageError", "messages[0].content is a coroutine (write `await` before forgotten(…)); exp"),
        (as_the_reward, "ScoreError", "the reward is a coroutine (write `await` before forgotten(…)); expected a fin"),
        (unused, "ScoreError", "called `chat` without waiting for the reply, so the turn was never played; write"),
        (as_the_score, "ScoreError", "returned a coroutine (write `await` before forgotten(…)); write `return Score"),
    ],
)
async def test_the_error_of_a_forgotten_await_names_the_call_and_python_warns_of_nothing(
    policy: PolicyClient, playing: Callable[[Model], Awaitable[Any]], kind: str, problem: str
) -> None:
    error = await error_of(Plays(playing), policy)
    assert error["type"] == kind
    assert problem in error["message"]


async def test_the_error_of_an_unknown_argument_of_chat_says_what_to_write_instead(policy: PolicyClient) -> None:
    async def chooses_a_tool(model: Model) -> Score:
        await model.chat([QUESTION], tool_choice="auto")  # type: ignore[call-arg]
        raise AssertionError

    error = await error_of(Plays(chooses_a_tool), policy)
    assert error["type"] == "ChatArgumentError"
    assert error["message"].startswith("model.chat has no argument 'tool_choice'. The policy chooses a tool. Pass")


async def test_an_error_that_only_mentions_coroutines_stays_unchanged(policy: PolicyClient) -> None:
    async def gathers(model: Model) -> Score:
        await asyncio.gather(5)  # type: ignore[call-overload]
        raise AssertionError

    error = await error_of(Plays(gathers), policy)
    assert error["type"] == "TypeError"


@pytest.mark.parametrize("returned", [None, 0.5, True, {"reward": 1.0}], ids=repr)
async def test_the_error_of_a_run_without_a_score_has_its_line_and_the_correct_form(
    policy: PolicyClient, returned: object
) -> None:
    async def playing(model: Model) -> object:
        return returned

    error = await error_of(Plays(playing), policy)
    kind = "None" if returned is None else f"a {type(returned).__name__}"
    assert re.match(
        rf"Plays\.run \(.+test_mistakes\.py, line \d+\) returned {kind}; write `return Score\(reward=…\)`",
        error["message"],
    )


@pytest.mark.parametrize("method", ["reset", "step"])
async def test_the_error_of_a_refused_image_names_the_method_that_returned_it(
    policy: PolicyClient, method: str
) -> None:
    wrong: Message = {"role": "user", "content": [{"type": "image", "image": np.zeros((4, 4, 3))}]}
    coin = Coin(EnvironmentSettings())
    coin.first = [wrong] if method == "reset" else [QUESTION]
    coin.turn = Turn([wrong])
    error = await error_of(coin, policy)
    assert error["type"] == "ImageError"
    index = 0 if method == "reset" else 2
    assert re.match(
        rf"chat with the messages from Coin\.{method} \(.+test_mistakes\.py, line \d+\) failed: "
        rf"messages\[{index}\]\.content\[0\]: ",
        error["message"],
    )


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (Score(float("nan")), "the reward is nan; expected a finite number"),
        (Score(1.0, {"steps": "many"}), "the metric 'steps' is 'many'; expected a finite number"),  # type: ignore[dict-item]
        (Score(1.0, 5), "the metrics are an int; expected a mapping"),  # type: ignore[arg-type]
    ],
)
async def test_the_error_of_a_wrong_number_in_a_score_has_the_line_of_the_method(
    policy: PolicyClient, score: Score, problem: str
) -> None:
    async def playing(model: Model) -> Score:
        return score

    coin = Coin(EnvironmentSettings())
    coin.turn = Turn(score=score)
    for environment, method in ((Plays(playing), r"Plays\.run"), (coin, r"Coin\.step")):
        error = await error_of(environment, policy)
        assert re.match(rf"{method} \(.+test_mistakes\.py, line \d+\) returned a Score that ", error["message"])
        assert problem in error["message"]
