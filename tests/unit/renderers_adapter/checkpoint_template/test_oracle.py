"""Every family of the `renderers` package is an oracle: a template that writes its text is bridged as the family is.

The template's text is what the family's own renderer writes for a whole conversation, decoded. Our bridge knows nothing
about this renderer. Where both bridge, the tokens are equal. REFUSED_ONLY_BY_US lists where only the family bridges.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.checkpoint_template.answer_parser import AnswerParser
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, format_now
from renderers_adapter.checkpoint_template.renderer import TemplateRenderer
from renderers_adapter.checkpoint_template.text_memory import TextMemory
from renderers_adapter.creation import renderer_factory
from renderers_adapter.families import FAMILIES, get_family
from renderers_adapter.options import RendererOptions
from renderers_adapter.rendered import ParsedCompletion
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokens import LogicalIds, as_logical_ids
from tests.unit.renderers_adapter.conversations import BUILT_IN, SYSTEM, joined
from tests.unit.renderers_adapter.test_families import (
    ANSWER,
    CALL,
    CLOSES_WITH_MORE,
    QUESTION,
    RESULT,
    TOOLS,
    sampled_part,
)

REASONED = {**ANSWER, "reasoning_content": "hm"}
PLAIN_CALL = {key: value for key, value in CALL.items() if key != "reasoning_content"}
SECOND_RESULT = {**RESULT, "content": "4"}
ASKED = [SYSTEM, {"role": "user", "content": "1 + 2?"}]
TURNS: Mapping[str, tuple[list[Any], dict[str, Any], list[Any]]] = {
    "question": (ASKED, REASONED, [QUESTION]),
    "question without reasoning": (ASKED, ANSWER, [QUESTION]),
    "result": (ASKED, CALL, [RESULT]),
    "result without reasoning": (ASKED, PLAIN_CALL, [RESULT]),
    "two results": (ASKED, CALL, [RESULT, SECOND_RESULT]),
    "question after calls": ([*ASKED, CALL, RESULT], REASONED, [QUESTION]),
    "result after a question": ([*ASKED, CALL, RESULT, REASONED, QUESTION], CALL, [RESULT]),
}
"""Turns by what comes after the answer: the conversation before the answer, the answer, and the new messages."""


_OTHER_OPENING = BridgeRefusalReason.EARLIER_TEXT_CHANGED
_WITH_REASONING = ("question", "result", "two results", "question after calls", "result after a question")
REFUSED_ONLY_BY_US: Mapping[str, Mapping[str, BridgeRefusalReason]] = {
    # The text of an answer does not have its reasoning, so a whole render would lose it.
    "gemma4": {"question": BridgeRefusalReason.THINKING_DROPPED},
    # An answer without reasoning has another channel than the prompt opens.
    "gpt-oss": {"result without reasoning": _OTHER_OPENING},
    # The prompt opens an answer with finished reasoning, and a past answer has its own reasoning there.
    "hy3": dict.fromkeys(("result", "two results", "result after a question"), _OTHER_OPENING),
    "laguna-m.1": dict.fromkeys(_WITH_REASONING, _OTHER_OPENING),
    "laguna-xs.2": dict.fromkeys(_WITH_REASONING, _OTHER_OPENING),
    # Other control tokens stand between the text or the calls of an answer and its end token.
    "inkling": dict.fromkeys(TURNS, BridgeRefusalReason.RENDERER_REFUSED),
    # An empty block of reasoning stands before the text of a past answer, and a header would look the same.
    "glm-5.3": {"question without reasoning": BridgeRefusalReason.RENDERER_REFUSED},
    "laguna-s-2.1": {"question without reasoning": BridgeRefusalReason.RENDERER_REFUSED},
    "qwen3.8": {"question without reasoning": BridgeRefusalReason.RENDERER_REFUSED},
    # A past answer without reasoning has an empty block that differs from the beginning of the prompt's block.
    "nemotron-3": {"result without reasoning": _OTHER_OPENING},
    "nemotron-3-ultra": {"result without reasoning": _OTHER_OPENING},
    "nemotron-3.5": {"result without reasoning": _OTHER_OPENING},
}
"""Turns that the renderer of a family bridges and ours does not, with our reason."""


class FamilyTemplate(ChatTemplate):
    """A chat template that writes what the renderer of a family writes."""

    def __init__(self, family: str, adapter: RendererAdapter) -> None:
        super().__init__("")
        create = renderer_factory(get_family(family), Path(adapter.tokenizer.name_or_path), RendererOptions())
        self._renderer = create(MaskingTokenizer(adapter.tokenizer))
        self._decode = adapter.tokenizer.decode

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any],
        *,
        add_generation_prompt: bool = True,
        strftime_now: Callable[[str], str] = format_now,
    ) -> str:
        rendered = self._renderer.render(list(messages), tools=tools, add_generation_prompt=add_generation_prompt)
        return self._decode(rendered.token_ids)


def outcome(bridge: Callable[[], list[int]]) -> list[int] | BridgeRefusalReason:
    try:
        return bridge()
    except BridgeRefused as refusal:
        return refusal.reason


def sampled(
    adapter: RendererAdapter, history: Sequence[Any], answer: Mapping[str, Any], added: Sequence[Any], tools: Any
) -> tuple[LogicalIds, LogicalIds]:
    """Return the tokens before an answer, and the tokens that a policy samples to say it."""
    opening = adapter.render(history, tools).generation_prompt
    completion = sampled_part(opening, adapter.render([*history, answer], tools).segments[-1]).tolist()
    if not completion or completion[-1] not in adapter.stop_token_ids:
        past = adapter.render([*history, answer, *added], tools).segments[len(history)]
        completion.append(int(past.ids[-1]))
    return opening, as_logical_ids(completion)


def as_message(parsed: ParsedCompletion) -> dict[str, Any]:
    """Return a parsed answer as the message that a session adds to the conversation."""
    calls = [
        {
            "id": call.id or "functions.add:0",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in parsed.tool_calls
    ]
    reasoning = {} if parsed.reasoning is None else {"reasoning_content": parsed.reasoning}
    return {"role": "assistant", "content": parsed.text, **reasoning, **({"tool_calls": calls} if calls else {})}


def turns_of(family: str) -> list[str]:
    supports_tools = FAMILIES[family].supports_tools
    return [turn for turn, (history, answer, _) in TURNS.items() if supports_tools or not uses_tools(history, answer)]


def uses_tools(history: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> bool:
    return any(message.get("tool_calls") for message in (*history, answer))


@pytest.mark.parametrize(("family", "turn"), [(family, turn) for family in BUILT_IN for turn in turns_of(family)])
def test_where_both_bridge_the_tokens_are_equal_and_every_other_refusal_is_listed(
    adapter_for: Callable[[str], RendererAdapter], family: str, turn: str
) -> None:
    history, answer, added = TURNS[turn]
    tools = TOOLS if uses_tools(history, answer) else None
    adapter = adapter_for(family)
    opening, completion = sampled(adapter, history, answer, added, tools)
    said = as_message(adapter.parse(opening, completion, tools))
    tokenizer = MaskingTokenizer(adapter.tokenizer)
    ends = {end: adapter.tokenizer.decode(end) for end in adapter.stop_token_ids}
    parser = AnswerParser(tokenizer, adapter.stop_token_ids, None, None)
    renderer = TemplateRenderer(FamilyTemplate(family, adapter), tokenizer, {}, ends, parser, TextMemory())

    ours = outcome(lambda: renderer.bridge([*history, said], completion.tolist(), added, tools, None).token_ids)
    theirs = outcome(lambda: bridged_ids(adapter, opening, completion, added, tools))

    if isinstance(theirs, list) and family in CLOSES_WITH_MORE:
        theirs = [*adapter.tokenizer.encode("\n"), *theirs]
    if isinstance(theirs, BridgeRefusalReason):
        assert turn not in REFUSED_ONLY_BY_US.get(family, {})
    else:
        assert ours == REFUSED_ONLY_BY_US.get(family, {}).get(turn, theirs)


def bridged_ids(
    adapter: RendererAdapter, opening: LogicalIds, completion: LogicalIds, added: list[Any], tools: Any
) -> list[int]:
    bridged = adapter.bridge([], opening, completion, added, tools)
    return [*joined(bridged.segments), *bridged.generation_prompt.tolist()]
