"""Finds the text that a chat template writes after a sampled answer, and proves that it belongs there.

A template is a program, so nothing is known about it. The real conversation is rendered with and without the new
messages, and the text after the answer is used only if

- the template writes everything before the answer exactly as it wrote the prompt of this answer,
- it writes the answer: its text and nothing else, or with its reasoning,
- exactly one end token stands between the prompt and the new messages, and
- marks in the new messages change nothing.

By induction over the turns, the prompt then equals the whole conversation with the sampled tokens in the place of each
answer. Otherwise `BridgeRefused` says why the whole conversation must be rendered.
"""

import re
from collections.abc import Mapping
from typing import Any

from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.checkpoint_template.message_marks import contains_marks, first_mark, without_marks

Message = Mapping[str, Any]


def find_tail(prompt: str, whole: str, marked: str, answer: Message, end_tokens: re.Pattern[str]) -> str:
    """Return the marked text after the answer. It begins with the answer's end token.

    Args:
        prompt: the rendered conversation before the answer, with the generation prompt.
        whole: the rendered conversation with the answer and the new messages, with the generation prompt.
        marked: the same with marks in the new messages.
        answer: the answer, as the template got it.
        end_tokens: finds the tokens that end an answer.

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
    if contains_marks(after) or not contains_marks(marked_after):
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    if not marked.startswith(prompt) or without_marks(marked_after) != after:
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    ends = list(end_tokens.finditer(marked_after, 0, first_mark(marked_after)))
    if len(ends) != 1:
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    written = marked_after[: ends[0].start()]
    if reasoning not in written:
        raise BridgeRefused(BridgeRefusalReason.THINKING_DROPPED)
    if not reasoning and not answer.get("tool_calls") and written.strip() != _text(answer).strip():
        raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
    return marked_after[ends[0].start() :]


def _text(answer: Message) -> str:
    content = answer["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
