"""The task that a policy learns: its questions, the allowed answers, and the score."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from examples.grpo_color_codeword.environment import (
    COLORS,
    TOKENIZER,
    CodewordSettings,
    CodewordTasks,
    LearnedCodeword,
    color_ids,
)
from renderers_adapter.tokenizer import load_tokenizer
from rollout import FinishReason, Model, Reply, Score
from rollout.records.messages import Message


class ScriptedModel(Model):
    """A model with fixed answers that keeps the sampling of each call."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = iter(answers)
        self.sampling: list[Mapping[str, Any]] = []

    async def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        self.sampling.append(sampling or {})
        text = next(self._answers)
        return Reply(message={"role": "assistant", "content": text}, text=text, finish_reason=FinishReason.LENGTH)


async def play_task(ask: str, *answers: str) -> tuple[Score, ScriptedModel]:
    environment = LearnedCodeword(CodewordSettings.model_validate({"ask": ask}))
    [task] = environment.tasks(CodewordTasks(count=1))
    shown = dict(zip("123", task.data["codeword"], strict=True))
    wrong = next(color for color in COLORS if color not in shown.values())
    model = ScriptedModel(["".join(shown.get(letter, wrong) for letter in answer) for answer in answers])
    return await environment.run(task, model), model


@pytest.mark.parametrize(
    ("ask", "answers", "right"),
    [
        ("along", ("1", "2", "3", "123"), [1, 1, 1, 1, 1, 1]),
        ("along", ("1", "x", "3", "1x3"), [1, 0, 1, 1, 0, 1]),
        ("at_end", ("x", "x", "x", "12x"), [1, 1, 0]),
        ("at_end", ("1", "2", "3", "xxx"), [0, 0, 0]),
    ],
)
async def test_every_answer_that_counts_has_its_own_score(ask: str, answers: tuple[str, ...], right: list[int]) -> None:
    score, _ = await play_task(ask, *answers)
    assert list(score.metrics.values()) == right
    assert list(score.metrics) == [f"right.{number}" for number in range(len(right))]
    assert score.reward == pytest.approx(sum(right) / len(right))


async def test_only_colours_are_allowed_and_each_is_one_token() -> None:
    _, model = await play_task("along", "1", "2", "3", "123")
    assert [sampling["max_tokens"] for sampling in model.sampling] == [1, 1, 1, 3]
    assert all(sampling["allowed_token_ids"] == list(color_ids()) for sampling in model.sampling)
    tokenizer = load_tokenizer(TOKENIZER)
    assert tuple(tokenizer.decode([token]) for token in color_ids()) == COLORS
    assert json.loads(json.dumps(model.sampling[0])) == model.sampling[0]
