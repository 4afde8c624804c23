"""The adapter: rendering, bridging and parsing for the Qwen3-VL family, on the small tokenizer that we ship."""

from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.errors import AdapterError
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.tokens import LogicalIds, as_logical_ids
from tests.unit.renderers_adapter.conversations import IMAGE, SYSTEM, joined, rendered_ids, user


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def completion(adapter: RendererAdapter, text: str) -> LogicalIds:
    return as_logical_ids([*adapter.tokenizer.encode(text), adapter.stop_token_ids[0]])


def test_a_bridge_adds_exactly_what_a_full_render_would(adapter: RendererAdapter) -> None:
    first = [SYSTEM, user(IMAGE, "What colour?")]
    tail = [user("And this?", IMAGE)]
    rendered = adapter.render(first, None)
    answer = completion(adapter, "red")

    bridged = adapter.bridge([], rendered.generation_prompt, answer, tail, None)

    added = [*answer.tolist(), *joined(bridged.segments), *bridged.generation_prompt.tolist()]
    assert [*rendered_ids(adapter, first), *added] == rendered_ids(adapter, [*first, assistant("red"), *tail])


def test_bridge_and_render_attribute_the_same_tokens_to_the_same_message(adapter: RendererAdapter) -> None:
    first, tail = [user(IMAGE, "One")], [user("Two"), user(IMAGE, "three")]
    rendered = adapter.render(first, None)
    bridged = adapter.bridge([], rendered.generation_prompt, completion(adapter, "red"), tail, None)
    full = adapter.render([*first, assistant("red"), *tail], None)
    assert [s.ids.tolist() for s in bridged.segments] == [s.ids.tolist() for s in full.segments[2:]]
    assert [s.content_spans for s in bridged.segments] == [s.content_spans for s in full.segments[2:]]
    assert full.segments[1].ids.tolist() == [*rendered.generation_prompt.tolist(), *completion(adapter, "red").tolist()]


def test_content_spans_contain_only_the_text_and_the_images(adapter: RendererAdapter) -> None:
    (segment,) = adapter.render([user("hello ", IMAGE, " there")], None).segments
    body = [token for start, end in segment.content_spans for token in segment.ids[start:end].tolist()]
    assert adapter.tokenizer.decode(body, skip_special_tokens=False) == "hello <|image_pad|> there"
    assert segment.ids[list(segment.image_offsets)].tolist() == [adapter.pad_id]


def test_the_bridge_closes_a_completion_that_was_cut(adapter: RendererAdapter) -> None:
    rendered = adapter.render([user("Say much")], None)
    cut = as_logical_ids(adapter.tokenizer.encode("and so on"))
    bridged = adapter.bridge([], rendered.generation_prompt, cut, [user("Go on")], None)
    assert bridged.segments[0].ids[0] == adapter.stop_token_ids[0]


def test_an_answer_with_another_end_token_needs_a_full_render(adapter: RendererAdapter) -> None:
    opening = adapter.render([user("Hi")], None).generation_prompt
    ended = as_logical_ids(adapter.tokenizer.encode("yes<|endoftext|>"))
    assert ended[-1] in adapter.stop_token_ids
    for message in (user("Sure?"), {"role": "tool", "content": "3"}):
        with pytest.raises(BridgeRefused) as refusal:
            adapter.bridge([], opening, ended, [message], None)
        assert refusal.value.reason is BridgeRefusalReason.END_TOKEN


def test_an_assistant_message_in_the_tail_needs_a_full_render(adapter: RendererAdapter) -> None:
    rendered = adapter.render([user("Hi")], None)
    with pytest.raises(BridgeRefused) as refusal:
        adapter.bridge([], rendered.generation_prompt, completion(adapter, "a"), [assistant("b"), user("c")], None)
    assert refusal.value.reason is BridgeRefusalReason.ASSISTANT_MESSAGE


@pytest.mark.parametrize(
    "messages",
    [
        [user("a"), {"role": "system", "content": "late"}],
        [{"role": "system", "content": [IMAGE]}, user("a")],
        [user("a"), {"role": "assistant", "content": [IMAGE]}, user("b")],
    ],
)
def test_messages_that_render_and_bridge_treat_differently_are_refused(
    adapter: RendererAdapter, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(UnsupportedConversation):
        adapter.render(messages, None)


def test_parse_reads_text_and_tool_calls(adapter: RendererAdapter) -> None:
    opening = adapter.render([user("Hi")], None).generation_prompt
    good, bad = '{"name": "add", "arguments": {"a": 1}}', "{broken"
    text = f"Let me see.\n<tool_call>\n{good}\n</tool_call>\n<tool_call>\n{bad}\n</tool_call>"
    parsed = adapter.parse(opening, completion(adapter, text))
    assert parsed.text == "Let me see."
    assert [(call.name, dict(call.arguments), call.error) for call in parsed.tool_calls] == [
        ("add", {"a": 1}, None),
        ("", {}, "invalid_json"),
    ]


def test_a_model_without_a_processor_configuration_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    with pytest.raises(AdapterError, match=r"preprocessor_config\.json"):
        RendererAdapter.open(tmp_path, "qwen3-vl")
