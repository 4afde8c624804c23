"""Finds the text that a chat template writes after a sampled answer, and proves that it belongs there.

A template is a program, so nothing is known about it. The real conversation is rendered with and without the new
messages, and the text after the answer is used only if

- the template writes everything before the answer exactly as it wrote the prompt of this answer,
- it writes the answer: its reasoning, its text and its calls,
- nothing but white space stands before a text without reasoning, and after a text without calls,
- the policy sampled the control tokens that the template writes before the reasoning or the calls of the answer,
- exactly one end token stands between the prompt and the new messages, and it is none of the answer's own text, and
- marks in the answer and in the new messages change nothing.

By induction over the turns, the prompt then equals the whole conversation with the sampled tokens in the place of each
answer. What a template writes between the parts of an answer, or after its reasoning or calls, is not compared with the
sampled tokens, which stay. Otherwise `BridgeRefused` says why the whole conversation must be rendered.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.checkpoint_template.message_marks import (
    Mark,
    contains_marks,
    find_mark,
    first_mark,
    mark_empty_message,
    mark_messages,
    without_marks,
)

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tail:
    """What a template writes after a prompt.

    Attributes:
        opening: the text before the first word of an answer with reasoning or calls; empty for other answers.
        marked_text: the text after the answer, with marks. It begins with the answer's end token.
    """

    opening: str
    marked_text: str


def mark_answer_and_messages(answer: Message, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the answer and the new messages with marks. The answer has the index 0.

    If all new messages are empty, such as the result of a tool without output, the first one gets marks as its text.
    """
    marked = mark_messages([answer, *messages])
    if marked[1:] == list(messages):
        marked[1] = mark_empty_message(messages[0], 1)
    return marked


def find_tail(
    prompt: str, whole: str, marked: str, answer: Message, end_tokens: re.Pattern[str], *, is_cut: bool
) -> Tail:
    """Return the text after the answer, and what the template writes before the answer's own words.

    Args:
        prompt: the rendered conversation before the answer, with the generation prompt.
        whole: the rendered conversation with the answer and the new messages, with the generation prompt.
        marked: the same with the messages of `mark_answer_and_messages`.
        answer: the answer, as the template got it.
        end_tokens: finds the tokens that end an answer.
        is_cut: whether the answer was cut, so that the template closes it.

    Raises:
        BridgeRefused: nothing proves that the text is right.
    """
    reasoning = str(answer.get("reasoning_content") or "").strip()
    if not whole.startswith(prompt):
        drops_reasoning = reasoning and reasoning not in whole
        raise BridgeRefused(
            BridgeRefusalReason.THINKING_DROPPED if drops_reasoning else BridgeRefusalReason.EARLIER_TEXT_CHANGED
        )
    after, marked_after = whole[len(prompt) :], marked[len(prompt) :]
    first_new = first_mark(marked_after, first_index=1)
    if contains_marks(after) or first_new is None:
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    if not marked.startswith(prompt) or without_marks(marked_after) != after:
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    ends = list(end_tokens.finditer(marked_after, 0, first_new))
    if len(ends) != 1:
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    written = marked_after[: ends[0].start()]
    if reasoning and find_mark(written, Mark.REASONING) is None:
        raise BridgeRefused(BridgeRefusalReason.THINKING_DROPPED)
    if not _is_written(answer, reasoning, written, is_cut) or _spells_end_token(answer, reasoning, end_tokens):
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    has_parts = bool(reasoning or answer.get("tool_calls"))
    opening = written[: first_mark(written)] if has_parts else ""
    return Tail(opening, marked_after[ends[0].start() :])


def _is_written(answer: Message, reasoning: str, written: str, is_cut: bool) -> bool:
    """Whether the text between the prompt and the end token is surely the answer.

    The policy wrote its own white space around the text. But after a cut answer, white space is the template's.
    """
    calls: Sequence[Message] = answer.get("tool_calls") or ()
    has_calls, text = bool(calls), _text(answer).strip()
    if has_calls and find_mark(written, Mark.CALL) is None and not _writes_id(calls[-1], written, text + reasoning):
        return False  # some templates write the id of a call, and no name
    if is_cut and written != written.rstrip():
        return False
    if not text:
        return bool(reasoning or has_calls) or not (written if is_cut else written.strip())
    begin, end = find_mark(written, Mark.BEGIN), find_mark(written, Mark.END)
    if begin is None or end is None or written[begin + 1 : end] != text:
        return False
    before, after = written[:begin], written[end + 1 :]
    return (bool(reasoning) or not before.strip()) and (has_calls or not after.strip())


def _writes_id(call: Message, written: str, own_text: str) -> bool:
    """Whether the id of a call is written, and not only spelled by the answer's own text."""
    call_id = call.get("id") or ""
    return bool(call_id) and written.count(call_id) > own_text.count(call_id)


def _spells_end_token(answer: Message, reasoning: str, end_tokens: re.Pattern[str]) -> bool:
    """Whether the reasoning or a call contains an end token, which would be taken for the one after the answer."""
    calls = json.dumps(answer.get("tool_calls") or "", ensure_ascii=False)
    return end_tokens.search(reasoning) is not None or end_tokens.search(calls) is not None


def _text(answer: Message) -> str:
    content = answer["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
