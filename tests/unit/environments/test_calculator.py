"""The calculator: chains of correct, wrong and malformed tool calls."""

from pathlib import Path
from typing import Any

import pytest

from rollout.environments.base import Reply
from rollout.environments.calculator import Calculator, CalculatorSettings, CalculatorTasks
from rollout.records.endings import RolloutStatus
from rollout.records.messages import FinishReason, ToolCall
from rollout.records.task import Task
from rollout.testing import embedded_policy, play
from rollout.trainer import check, samples

SCRIPT = "rollout.serving.arithmetic:ArithmeticPolicy"
TASK = Task("0", 0, 1, {"start": 7, "chain": [["add", 5], ["multiply", 3]]})


def reply(text: str = "", *calls: ToolCall) -> Reply:
    return Reply({"role": "assistant", "content": text}, text, FinishReason.STOP, calls)


def call(error: str | None = None, /, **arguments: Any) -> ToolCall:
    return ToolCall("1", "calculate", arguments, error=error)


async def test_a_scripted_rollout_calls_the_tool_for_each_step_and_answers_correctly(tmp_path: Path) -> None:
    calculator = Calculator(CalculatorSettings())
    (task,) = calculator.tasks(CalculatorTasks(count=1, operations=5))
    async with embedded_policy(tmp_path, script=SCRIPT, sampling={"max_tokens": 256}) as policy:
        trajectory = (await play(calculator, task, policy=policy)).trajectory
    assert (trajectory.status, trajectory.reward) == (RolloutStatus.OK, 1.0)
    assert trajectory.metrics["calls"] == 5
    assert check(trajectory) == []
    assert [step.prompt_source for step in trajectory.steps] == ["first", *["bridge"] * 5]
    assert [step.tools is not None for step in trajectory.steps] == [True, *[False] * 5]
    (sample,) = samples(trajectory)
    assert "<tool_response>" not in policy.renderers.tokenizer.decode(
        sample.token_ids[sample.content_mask("tool")].tolist()
    )


async def test_with_a_high_temperature_some_calls_are_malformed_and_the_records_stay_exact(tmp_path: Path) -> None:
    calculator = Calculator(CalculatorSettings())
    tasks = list(calculator.tasks(CalculatorTasks(count=4, operations=4)))
    sampling = {"max_tokens": 256, "temperature": 2.0, "seed": 3}
    async with embedded_policy(tmp_path, script=SCRIPT, sampling=sampling) as policy:
        trajectories = [
            (await play(Calculator(CalculatorSettings()), task, policy=policy)).trajectory for task in tasks
        ]
    assert sum(trajectory.metrics["refused_calls"] for trajectory in trajectories) > 0
    assert [check(trajectory) for trajectory in trajectories] == [[]] * 4


async def test_several_calls_in_one_answer_get_a_result_each() -> None:
    calculator = Calculator(CalculatorSettings())
    await calculator.reset(TASK)
    turn = await calculator.step(reply("", call(operation="add", a=7, b=5), call(operation="multiply", a=12, b=3)))
    assert [message["content"] for message in turn.messages] == ["12", "36"]
    assert {message["role"] for message in turn.messages} == {"tool"}


@pytest.mark.parametrize(
    ("made", "expected_text"),
    [
        (call("invalid_json"), "error: the call cannot be read (invalid_json)"),
        (call(operation="divide", a=1, b=2), "error: unknown operation 'divide'"),
        (call(operation="add", a="1", b=2), "error: operation must be a string, and a and b must be whole numbers"),
        (ToolCall("1", "look", {}), "error: there is no tool 'look'"),
    ],
)
async def test_the_answer_to_an_impossible_call_says_why(made: ToolCall, expected_text: str) -> None:
    calculator = Calculator(CalculatorSettings())
    await calculator.reset(TASK)
    (message,) = (await calculator.step(reply("", made))).messages
    assert message["content"].startswith(expected_text)


@pytest.mark.parametrize(("text", "reward"), [("The result is 36.", 1.0), ("It is 35.", 0.0), ("Done.", 0.0)])
async def test_the_first_number_of_the_last_answer_counts(text: str, reward: float) -> None:
    calculator = Calculator(CalculatorSettings())
    await calculator.reset(TASK)
    score = (await calculator.step(reply(text))).score
    assert score is not None
    assert score.reward == reward


async def test_after_the_last_turn_the_reward_is_zero() -> None:
    calculator = Calculator(CalculatorSettings(max_turns=2))
    await calculator.reset(TASK)
    again = reply("", call(operation="add", a=1, b=1))
    assert (await calculator.step(again)).score is None
    score = (await calculator.step(again)).score
    assert score is not None
    assert score.reward == 0.0
