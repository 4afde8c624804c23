"""What a program sees of a turn that its own stop text ended: the text up to the stop text, as providers give it."""

from typing import Any

import numpy as np
import pytest

from renderers_adapter.tokens import LogicalIds
from rollout.environments.base import Reply
from rollout.gateway.answers import build_choice
from rollout.gateway.dialects.base import AnswerChoice, TurnRequest
from rollout.records.kinds import PromptSource
from rollout.records.messages import FinishReason, Message
from rollout.session.turns import SessionTurn


def choice_of(text: str, asked: list[str], stop_reason: str | int | None, reasoning: str = "") -> AnswerChoice:
    """Return what a program sees of a turn, if it asked for some stop texts and the engine reports a stop reason."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    reply = Reply(message, text, FinishReason.STOP, (), prompt_tokens=1, completion_tokens=1, turn=0)
    turn = SessionTurn(
        reply, 0, PromptSource.FIRST, 0, LogicalIds(np.zeros(1, np.int32)), np.zeros(1, np.float32), stop_reason
    )
    request = TurnRequest((), (), None, sampling={"stop": asked} if asked else {})
    session: Any = None  # only asked for the text of tokens
    return build_choice(turn, request, session)


@pytest.mark.parametrize(
    ("text", "stop", "seen"),
    [
        ("I look.\nObservation:", "\nObservation:", "I look."),
        ("I look.\nObservation: it", "\nObservation:", "I look."),
        ("I look.\nHuman:", "\nHuman: ", "I look."),
        ("Observation:", "\nObservation:", ""),
        ("I look.", "\n\n", "I look."),
    ],
    ids=[
        "at the end",
        "the last token goes on",
        "spaces after it are lost",
        "spaces before it are lost",
        "only spaces",
    ],
)
def test_the_text_ends_before_the_stop_text(text: str, stop: str, seen: str) -> None:
    choice = choice_of(text, [stop], stop)
    assert (choice.text, choice.stop_text) == (seen, stop)


def test_a_stop_text_in_the_reasoning_ends_the_reasoning() -> None:
    choice = choice_of("", ["END"], "END", reasoning="I think END")
    assert (choice.text, choice.reasoning) == ("", "I think ")


@pytest.mark.parametrize("stop_reason", ["END", 7, None])
def test_an_end_that_the_program_did_not_ask_for_leaves_the_text_as_it_is(stop_reason: str | int | None) -> None:
    choice = choice_of("I look. END", [], stop_reason)
    assert (choice.text, choice.stop_text) == ("I look. END", None)
