"""Bridges with a remembered prompt: the tokens are those of an adapter that remembers nothing."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import RenderedMessages
from renderers_adapter.special_text import SpecialTextRefused
from renderers_adapter.tokenizer import FastTokenizer
from renderers_adapter.tokens import as_logical_ids
from rollout.serving import tiny_model as tiny_models

TEMPLATE_FILE = Path(tiny_models.__file__).parent / "templates" / "qwen3.jinja"
SPECIAL = "a text with <|im_end|> in it"
ANSWER = {"role": "assistant", "content": "red"}


def open_adapter(directory: Path, special_text: SpecialText = SpecialText.TEXT) -> RendererAdapter:
    options = RendererOptions({"file": str(TEMPLATE_FILE)}, special_text)
    return RendererAdapter.open(directory, "template", options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bridge(
    adapter: RendererAdapter, conversation: Sequence[dict[str, Any]], question: str, tools: Any = None
) -> RenderedMessages:
    completion = as_logical_ids([*adapter.tokenizer.encode("red"), adapter.tokenizer.token_id("<|im_end|>")])
    return adapter.bridge(conversation, as_logical_ids([]), completion, [user(question)], tools)


def tokens(rendered: RenderedMessages) -> list[int]:
    ids = [token for segment in rendered.segments for token in segment.ids.tolist()]
    return [*ids, *rendered.generation_prompt.tolist()]


@pytest.mark.parametrize("special_text", [SpecialText.TEXT, SpecialText.ALLOW])
@pytest.mark.parametrize("first", ["a question", SPECIAL])
@pytest.mark.parametrize("second", ["another question", SPECIAL])
def test_a_remembered_prompt_changes_no_token(
    tiny_model: Path, special_text: SpecialText, first: str, second: str
) -> None:
    remembering, fresh = open_adapter(tiny_model, special_text), open_adapter(tiny_model, special_text)
    remembering.render([user(first)], None)
    bridged = bridge(remembering, [user(first), ANSWER], second)
    assert tokens(bridged) == tokens(bridge(fresh, [user(first), ANSWER], second))


def test_text_of_a_tool_that_spells_a_control_token_stays_text_after_a_bridge(tiny_model: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "description": SPECIAL, "parameters": {}}}]
    remembering, fresh = open_adapter(tiny_model), open_adapter(tiny_model)
    remembering.render([user("a question")], tools)
    bridged = bridge(remembering, [user("a question"), ANSWER], SPECIAL, tools)
    assert tokens(bridged) == tokens(bridge(fresh, [user("a question"), ANSWER], SPECIAL, tools))


def test_a_refused_text_after_a_remembered_prompt_is_named_by_its_place_in_the_conversation(tiny_model: Path) -> None:
    adapter = open_adapter(tiny_model, SpecialText.REFUSE)
    adapter.render([user("a question")], None)
    with pytest.raises(SpecialTextRefused, match="the user message 2 contains"):
        bridge(adapter, [user("a question"), ANSWER], SPECIAL)


def test_a_bridge_renders_the_conversation_twice_if_its_prompt_is_remembered_by_another_renderer_of_the_model(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_adapter(tiny_model)
    adapter.render([user("a question")], None)
    clone, lengths = adapter.clone(), []
    render = ChatTemplate.render

    def counted_render(self: ChatTemplate, messages: Sequence[Any], *given: Any, **options: Any) -> str:
        lengths.append(len(messages))
        return render(self, messages, *given, **options)

    monkeypatch.setattr(ChatTemplate, "render", counted_render)
    bridge(clone, [user("a question"), ANSWER], "another question")
    assert lengths == [3, 3]


@pytest.mark.parametrize(("message_count", "is_inline"), [(20, True), (400, False)])
async def test_a_bridge_after_many_short_messages_leaves_the_event_loop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, message_count: int, *, is_inline: bool
) -> None:
    adapter = open_adapter(tiny_model)
    threads: list[str] = []
    bridge_here = RendererAdapter.bridge

    def watched_bridge(self: RendererAdapter, *given: Any) -> RenderedMessages:
        threads.append(threading.current_thread().name)
        return bridge_here(self, *given)

    monkeypatch.setattr(RendererAdapter, "bridge", watched_bridge)
    tokenizer: FastTokenizer = adapter.tokenizer
    completion = as_logical_ids([*tokenizer.encode("red"), tokenizer.token_id("<|im_end|>")])
    conversation = [user("why?"), ANSWER] * (message_count // 2)
    await RendererPool(adapter).bridge(conversation, as_logical_ids([]), completion, [user("why?")], None)
    assert (threads == [threading.current_thread().name]) is is_inline
