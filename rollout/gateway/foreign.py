"""Handles foreign messages: assistant messages of a request that the policy did not give.

The summary of a run counts the reasons why they are foreign.
"""

from collections.abc import Sequence
from enum import StrEnum

from rollout.gateway.dialects.normal_form import normal_calls, normal_text
from rollout.records.messages import Message


class ForeignReason(StrEnum):
    """Why an assistant message is foreign: it is not an answer that the policy gave at this place.

    Attributes:
        ARGUMENTS: it is an answer, but a value in the arguments of a tool call differs.
        TEXT: it is an answer, but the text differs.
        CALLS: it is an answer, but it has other tool calls.
        INSERTED: the policy never gave such an answer; the client made it up.
        HISTORY: it is an answer, but a message before it differs from what it answered.
        TOOLS: it is an answer, but the request has other tools than the one that it answered.
        NOT_EXACT: it is an answer in another form, and `gateway.echo` is `exact`.
    """

    ARGUMENTS = "tool arguments edited"
    TEXT = "text edited"
    CALLS = "tool calls changed"
    INSERTED = "message inserted"
    HISTORY = "history changed"
    TOOLS = "tools changed"
    NOT_EXACT = "not exact"


_FROM_NEAREST = (ForeignReason.ARGUMENTS, ForeignReason.TEXT, ForeignReason.CALLS, ForeignReason.INSERTED)
"""What is reported of several answers at the same place: the smallest difference."""


def smallest_difference(echoes: Sequence[Message], answers: Sequence[Message]) -> ForeignReason:
    """Return how a foreign message differs from the nearest of the answers that the policy gave at its place.

    Args:
        echoes: the message; also joined with those after it, if it can be a part of one answer.
        answers: the answers as they were sent; the arguments of all calls are JSON text.
    """
    reasons = {_difference(echo, answer) for echo in echoes for answer in answers}
    return next((reason for reason in _FROM_NEAREST if reason in reasons), ForeignReason.INSERTED)


def _difference(message: Message, answer: Message) -> ForeignReason:
    text, calls = normal_text(message), normal_calls(message.get("tool_calls") or ())
    sent_text, sent_calls = normal_text(answer), normal_calls(answer.get("tool_calls") or ())
    if calls == sent_calls:
        return ForeignReason.TEXT
    # Clients drop the text beside calls, so a missing text says nothing.
    same_text = text == sent_text or (bool(calls) and not text)
    if [name for name, _ in calls] == [name for name, _ in sent_calls]:
        return ForeignReason.ARGUMENTS
    return ForeignReason.CALLS if same_text else ForeignReason.INSERTED
