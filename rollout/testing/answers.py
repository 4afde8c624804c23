"""The answers that a test writes, and the script that gives them to an environment."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rollout.environments.base import Retry
from rollout.errors import error_text
from rollout.records.messages import FinishReason, Message
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.testing.message_text import describe_messages

_SHOWN_MESSAGES = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the policy, as a test writes it.

    Attributes:
        text: the text of the answer. It is sampled exactly as written, so it may contain a malformed tool call.
        tool_calls: the tool calls of the answer as (name, arguments); they are written in the model's format.
        reasoning: the reasoning before the text.
        finish_reason: why the answer ends. With `length`, it stops without an end token, as at `max_tokens`.
    """

    text: str = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    reasoning: str = ""
    finish_reason: FinishReason | Literal["stop", "length"] = FinishReason.STOP


AnswerFunction = Callable[[list[Message]], "str | Answer | Awaitable[str | Answer]"]
Answers = Sequence[str | Answer] | AnswerFunction
"""A list of answers, or a function that gets the conversation and returns the next answer."""


class OutOfAnswers(AssertionError):
    """The environment asked for more answers than the test wrote."""


class AnswerUnusable(AssertionError):
    """An answer of a test has a wrong type, or cannot be written in the model's format."""


class AnswerScript:
    """Gives the answers of one rollout, one for each turn.

    Attributes:
        error: the first error in the test's answers; `play` raises it even if the environment catches it.
    """

    def __init__(self, answers: Answers) -> None:
        if isinstance(answers, str) or not (callable(answers) or isinstance(answers, Sequence)):
            raise TypeError(
                f"answers is {describe_wrong_type(answers)}; expected a list of answers, or a function that "
                "takes the conversation and returns the next answer"
            )
        self._function = answers if callable(answers) else None
        self._answers = (
            [] if callable(answers) else [_checked(answer, f"answers[{i}]") for i, answer in enumerate(answers)]
        )
        self._given = 0
        self._retries: list[Retry] = []
        self.error: Exception | None = None

    @property
    def unused(self) -> tuple[Answer, ...]:
        """The answers in the list for which the environment did not ask."""
        return tuple(self._answers[self._given :])

    def note_retry(self, retry: Retry) -> None:
        """Remember that an attempt ended with `Retry`; the next attempt gets the answers that follow."""
        self._retries.append(retry)

    async def next_answer(self, turn: int, conversation: list[Message]) -> Answer:
        """Return the answer to a conversation.

        Raises:
            OutOfAnswers: all answers in the list are used.
            AnswerUnusable: the function returned something else than an answer.
        """
        if self._function is not None:
            answer = self._function(conversation)
            return _checked(await answer if inspect.isawaitable(answer) else answer, f"the answer of turn {turn}")
        if self._given == len(self._answers):
            raise OutOfAnswers(
                f"The environment asks for an answer in turn {turn}{self._describe_attempt()}, but all "
                f"answers of the test are used ({len(self._answers)}). {self._advise()} The conversation ends with:\n"
                f"{describe_messages(conversation[-_SHOWN_MESSAGES:])}"
            ) from (self._retries[-1] if self._retries else None)
        self._given += 1
        return self._answers[self._given - 1]

    def _describe_attempt(self) -> str:
        return f" of attempt {len(self._retries) + 1}" if self._retries else ""

    def _advise(self) -> str:
        if not self._retries:
            return "Add an answer, or correct the environment."
        return (
            f"Attempt {len(self._retries)} ended with Retry: {error_text(self._retries[-1])}. If the test does not "
            "expect this, correct the environment. Otherwise add the answers of the next attempt, or give a function "
            "as `answers`, which answers in all attempts."
        )


def _checked(answer: object, name: str) -> Answer:
    if isinstance(answer, str):
        return Answer(answer)
    if not isinstance(answer, Answer):
        raise AnswerUnusable(f"{name} is {describe_wrong_type(answer)}; expected a string or an Answer.")
    for call in answer.tool_calls:
        _require_tool_call(call, name)
    if answer.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise AnswerUnusable(f"{name} has the finish_reason {answer.finish_reason!r}; expected stop or length.")
    if answer.finish_reason == FinishReason.LENGTH and not (answer.text or answer.reasoning or answer.tool_calls):
        raise AnswerUnusable(
            f"{name} is empty and ends with length; give it a text, because an engine samples at least one token."
        )
    return answer


def _require_tool_call(call: object, name: str) -> None:
    is_pair = isinstance(call, Sequence) and not isinstance(call, str) and len(call) == 2
    if not (is_pair and isinstance(call[0], str) and isinstance(call[1], Mapping)):  # type: ignore[index]
        raise AnswerUnusable(
            f"{name} has the tool call {show_value(call)}; expected (name, {{argument: value}}), as in "
            'tool_calls=[("look", {"at": "door"})].'
        )
