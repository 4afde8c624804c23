"""Every family: a bridge equals the full render, or is refused; Qwen2-VL and 2.5-VL use the renderer of Qwen3-VL."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.families import FAMILIES, UnknownRenderer, get_family
from renderers_adapter.options import RendererMismatch, RendererOptions
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.tokens import LogicalIds, as_logical_ids
from tests.unit.renderers_adapter.conversations import BUILT_IN, IMAGE, SYSTEM, joined, rendered_ids, user

CLOSES_WITH_MORE = {"laguna-m.1", "laguna-xs.2"}
"""Families whose full render has a line break after a past answer. Their bridge has none."""

FORGETS_REASONING = {
    *("deepseek-r1", "glm-4.5", "glm-5", "glm-5.1", "gpt-oss", "hy3", "kimi-k2.5", "minimax-m2", "nemotron-3"),
    *("nemotron-3-ultra", "nemotron-3.5", "qwen3", "qwen3.5", "qwen3.6"),
}
"""Families whose template drops reasoning from the history at a new question, so the prompt is rendered whole."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "hm",
    "tool_calls": [
        {"id": "functions.add:0", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "functions.add:0", "name": "add", "content": "3"}
ANSWER = {"role": "assistant", "content": "3"}
QUESTION = {"role": "user", "content": "Sure?"}


def sampled_part(opening: LogicalIds, past: Any) -> LogicalIds:
    """Return the tokens of a past answer without the opening, if they begin with it."""
    has_prompt = past.ids[: len(opening)].tolist() == opening.tolist()
    return as_logical_ids(past.ids[len(opening) :] if has_prompt else past.ids)


@pytest.mark.parametrize("family", BUILT_IN)
def test_the_bridge_of_a_question_equals_the_full_render_or_is_refused_for_dropped_reasoning(
    adapter_for: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = adapter_for(family)
    plain = {"role": "user", "content": "Colour?"}
    pictured = user(IMAGE, "Colour?") if adapter.pad_id is not None else plain
    begin, answer, tail = [SYSTEM, pictured], {"role": "assistant", "content": "red"}, [dict(pictured)]
    first, whole = adapter.render(begin, None), adapter.render([*begin, answer, *tail], None)
    assert joined(first.segments) == joined(whole.segments[:2])
    assert (adapter.pad_id is None) == (adapter.geometry is None)
    completion_ids = sampled_part(first.generation_prompt, whole.segments[2])
    assert adapter.parse(first.generation_prompt, completion_ids).tool_calls == ()

    if family in FORGETS_REASONING:
        with pytest.raises(BridgeRefused) as refusal:
            adapter.bridge([], first.generation_prompt, completion_ids, tail, None)
        assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
        return
    bridged = adapter.bridge([], first.generation_prompt, completion_ids, tail, None)
    more = adapter.tokenizer.encode("\n") if family in CLOSES_WITH_MORE else []
    assert [*more, *joined(bridged.segments)] == joined(whole.segments[3:])
    assert np.array_equal(bridged.generation_prompt, whole.generation_prompt)
    assert [segment.image_offsets for segment in bridged.segments] == [whole.segments[3].image_offsets]


@pytest.mark.parametrize("family", [name for name in BUILT_IN if FAMILIES[name].supports_tools])
def test_a_tool_call_is_parsed_and_its_result_is_bridged(
    adapter_for: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = adapter_for(family)
    begin = [SYSTEM, {"role": "user", "content": "1 + 2?"}]
    first, whole = adapter.render(begin, TOOLS), adapter.render([*begin, CALL, RESULT], TOOLS)
    assert joined(first.segments) == joined(whole.segments[:2])
    completion_ids = sampled_part(first.generation_prompt, whole.segments[2])
    if family == "deepseek-r1":  # its opening starts reasoning that its history does not have
        completion_ids = as_logical_ids([*adapter.tokenizer.encode("hm</think>"), *completion_ids.tolist()[1:]])
    (call,) = adapter.parse(first.generation_prompt, completion_ids, TOOLS).tool_calls
    assert (call.name, call.arguments, call.error) == ("add", {"a": 1, "b": 2}, None)

    if family == "deepseek-r1":
        with pytest.raises(BridgeRefused) as refusal:
            adapter.bridge([], first.generation_prompt, completion_ids, [RESULT], TOOLS)
        assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
        return
    bridged = adapter.bridge([], first.generation_prompt, completion_ids, [RESULT], TOOLS)
    more = adapter.tokenizer.encode("\n") if family in CLOSES_WITH_MORE else []
    assert [*more, *joined(bridged.segments)] == joined(whole.segments[3:])
    assert np.array_equal(bridged.generation_prompt, whole.generation_prompt)


@pytest.mark.parametrize(
    ("family", "answer", "next_message"),
    [(name, ANSWER, QUESTION) for name in BUILT_IN]
    + [(name, CALL, RESULT) for name in BUILT_IN if FAMILIES[name].supports_tools],
)
def test_an_answer_is_bridged_only_after_the_end_token_of_the_template(
    adapter_for: Callable[[str], RendererAdapter], family: str, answer: dict[str, Any], next_message: dict[str, Any]
) -> None:
    adapter, tools = adapter_for(family), TOOLS if answer is CALL else None
    begin = [SYSTEM, {"role": "user", "content": "1 + 2?"}]
    opening = adapter.render(begin, tools).generation_prompt
    whole = adapter.render([*begin, answer, next_message], tools)
    *said, closing = sampled_part(opening, whole.segments[2]).tolist()
    forgets = family == "deepseek-r1" or (family in FORGETS_REASONING and next_message is QUESTION)
    for end in adapter.stop_token_ids:
        expected = None if end == closing else BridgeRefusalReason.END_TOKEN
        if forgets:
            expected = BridgeRefusalReason.THINKING_DROPPED
        refusal = refusal_of(adapter, opening, as_logical_ids([*said, end]), next_message, tools)
        assert refusal is expected, adapter.tokenizer.decode([end])


def refusal_of(
    adapter: RendererAdapter, opening: LogicalIds, completion: LogicalIds, next_message: dict[str, Any], tools: Any
) -> BridgeRefusalReason | None:
    """Return the reason why a completion is not bridged; None if it is bridged."""
    try:
        adapter.bridge([], opening, completion, [next_message], tools)
    except BridgeRefused as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize("family", BUILT_IN)
def test_no_end_token_is_part_of_a_parsed_answer(adapter_for: Callable[[str], RendererAdapter], family: str) -> None:
    adapter = adapter_for(family)
    opening = adapter.render([SYSTEM, {"role": "user", "content": "Hi"}], None).generation_prompt
    for stop in adapter.stop_token_ids:
        parsed = adapter.parse(opening, as_logical_ids([*adapter.tokenizer.encode("yes"), stop]))
        assert (parsed.text + (parsed.reasoning or "")).strip() == "yes"
        assert parsed.tool_calls == ()


def test_gpt_oss_needs_the_name_of_the_tool_in_a_result(adapter_for: Callable[[str], RendererAdapter]) -> None:
    adapter = adapter_for("gpt-oss")
    nameless = {key: value for key, value in RESULT.items() if key != "name"}
    with pytest.raises(UnsupportedConversation, match="message 3 is a tool's result without a `name`"):
        adapter.render([SYSTEM, user("1 + 2?"), CALL, nameless], TOOLS)


def test_the_error_of_gpt_oss_names_the_missing_file(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    with pytest.raises(RendererMismatch, match=r"o200k_base\.tiktoken, was neither found.*TIKTOKEN_ENCODINGS_BASE"):
        RendererAdapter.open(tiny_model, "gpt-oss")


@pytest.mark.parametrize("family", ["qwen3.5", "qwen3.6", "kimi-k2.5"])
def test_reasoning_is_dropped_at_a_new_question_and_kept_for_a_tool(
    adapter_for: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = adapter_for(family)
    opening = adapter.render([user("Hi")], None).generation_prompt
    completion_ids = as_logical_ids([*adapter.tokenizer.encode("hm</think>red"), adapter.stop_token_ids[0]])
    with pytest.raises(BridgeRefused) as refusal:
        adapter.bridge([], opening, completion_ids, [user("Sure?")], None)
    assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
    result = {"role": "tool", "tool_call_id": "look:0", "content": [IMAGE, {"type": "text", "text": "found"}]}
    (segment,) = adapter.bridge([], opening, completion_ids, [result], None).segments
    assert len(segment.image_offsets) == 1


def test_a_template_argument_changes_what_is_kept(tiny_model: Path) -> None:
    no_thinking = RendererAdapter.open(tiny_model, "qwen3.5", RendererOptions({"enable_thinking": False}))
    opening = no_thinking.render([user("Hi")], None).generation_prompt
    assert no_thinking.tokenizer.decode(opening.tolist()).endswith("</think>\n\n")
    completion_ids = as_logical_ids([*no_thinking.tokenizer.encode("red"), no_thinking.stop_token_ids[0]])
    assert len(no_thinking.bridge([], opening, completion_ids, [user("Sure?")], None).segments) == 1


def test_an_unknown_template_argument_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RendererMismatch, match=r"enable_thinking.*correct model.template"):
        RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions({"enable_thinking": True}))


def test_a_template_argument_that_numbers_images_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RendererMismatch, match="'add_vision_id' numbers the images"):
        RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions({"add_vision_id": True}))


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RendererMismatch, match=r"llama-3 cannot be created.*begin_of_text"):
        RendererAdapter.open(tiny_model, "llama-3")


def test_an_unknown_name_is_refused_with_all_names_and_the_nearest() -> None:
    with pytest.raises(UnknownRenderer, match=r"Did you mean 'qwen3-vl'\?.*deepseek-v3.*qwen3\.8") as refusal:
        get_family("qwen3vl")
    assert all(name in str(refusal.value) for name in FAMILIES)


@pytest.mark.parametrize(
    ("written", "suggested"),
    [("qwen3-vll", "qwen3-vl"), ("Qwen3_VL", "qwen3-vl"), ("llama3", "llama-3"), ("qwen2.5", None), ("llama-4", None)],
)
def test_another_family_is_never_suggested(written: str, suggested: str | None) -> None:
    with pytest.raises(UnknownRenderer) as refusal:
        get_family(written)
    assert re.findall(r"Did you mean '(.*?)'", str(refusal.value)) == ([suggested] if suggested else [])


def test_an_unknown_name_gets_the_renderer_that_fits_any_text_model() -> None:
    with pytest.raises(UnknownRenderer, match=r"The renderer template uses the chat template in the model's directory"):
        get_family("llama-4")


def test_every_renderer_of_the_renderers_package_has_a_family() -> None:
    from renderers.configs import _CONFIG_BY_NAME

    ours = {FAMILIES[name].renderer for name in BUILT_IN}
    assert ours == set(_CONFIG_BY_NAME) - {"auto", "default", "custom"}


def test_the_documentation_says_for_each_family_how_a_new_question_is_rendered(repository: Path) -> None:
    lines = (repository / "docs" / "traces.md").read_text("utf-8").splitlines()
    rows = [line.split("|")[1:4] for line in lines if line.startswith("| `") and line.count("|") == 4]
    documented = {name: (sees, asked) for names, sees, asked in rows for name in re.findall(r"`([^`]+)`", names)}
    for name in BUILT_IN:
        family, (sees, asked) = FAMILIES[name], documented[name]
        assert sees.strip().startswith("yes") == (family.geometry is not None), name
        assert asked.strip().startswith("rendered (`thinking`)") == (name in FORGETS_REASONING), name


def qwen2_vl_template(messages: Sequence[dict[str, Any]]) -> str:
    """Return what the template of Qwen2-VL and Qwen2.5-VL writes, with the opening of the answer."""
    text = ""
    for index, message in enumerate(messages):
        if index == 0 and message["role"] != "system":
            text += "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text += f"<|im_start|>{message['role']}\n"
        if isinstance(message["content"], str):
            text += message["content"]
        else:
            for part in message["content"]:
                text += "<|vision_start|><|image_pad|><|vision_end|>" if part["type"] == "image" else part["text"]
        text += "<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


@pytest.fixture
def qwen2(tmp_path: Path, tiny_model: Path) -> RendererAdapter:
    """An adapter on a tokenizer without tokens for tools and reasoning, like that of Qwen2-VL."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["special"]]
    file.write_text(json.dumps(tokenizer), "utf-8")
    return RendererAdapter.open(tmp_path, "qwen2.5-vl")


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [SYSTEM, user(IMAGE, "What is this?")],
    [SYSTEM, {"role": "user", "content": "One"}, {"role": "assistant", "content": "red"}, user("Two", IMAGE, IMAGE)],
    [{"role": "system", "content": ""}, user("  spaces \n"), {"role": "assistant", "content": ""}, user(IMAGE)],
    [SYSTEM, user("a <think> in a text"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\nred"}, user("b")],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_conversation_with_a_system_message_is_rendered_like_the_template_of_qwen2_vl(
    qwen2: RendererAdapter, conversation: list[dict[str, Any]]
) -> None:
    assert rendered_ids(qwen2, conversation) == qwen2.tokenizer.encode(qwen2_vl_template(conversation))


def test_a_bridge_of_qwen2_vl_equals_its_template(qwen2: RendererAdapter) -> None:
    begin, tail = CONVERSATIONS[0], [user("And this?", IMAGE)]
    first = qwen2.render(begin, None)
    completion_ids = as_logical_ids([*qwen2.tokenizer.encode("red"), qwen2.stop_token_ids[0]])
    bridged = qwen2.bridge([], first.generation_prompt, completion_ids, tail, None)
    added = [*completion_ids.tolist(), *joined(bridged.segments), *bridged.generation_prompt.tolist()]
    expected = qwen2_vl_template([*begin, {"role": "assistant", "content": "red"}, *tail])
    assert [*rendered_ids(qwen2, begin), *added] == qwen2.tokenizer.encode(expected)


def test_a_token_that_the_tokenizer_does_not_have_is_never_written(qwen2: RendererAdapter) -> None:
    opening = qwen2.render(CONVERSATIONS[0], None).generation_prompt
    unclosed = as_logical_ids(qwen2.tokenizer.encode("<think>\nhm"))
    with pytest.raises(BridgeRefused):
        qwen2.bridge([], opening, unclosed, [user("Go on")], None)


@pytest.mark.parametrize(
    ("conversation", "tools", "expected_text"),
    [
        ([user(IMAGE)], None, "would add its own system message"),
        ([SYSTEM, user("a")], [{"type": "function", "function": {"name": "look"}}], "does not support tools"),
        ([SYSTEM, user("a"), {"role": "tool", "content": "b"}], None, "does not support tools"),
    ],
)
def test_messages_that_the_template_of_qwen2_vl_writes_differently_are_refused(
    qwen2: RendererAdapter, conversation: list[dict[str, Any]], tools: Any, expected_text: str
) -> None:
    with pytest.raises(UnsupportedConversation, match=expected_text):
        qwen2.render(conversation, tools)


def test_every_family_with_images_names_the_types_of_its_models() -> None:
    assert [family.name for family in FAMILIES.values() if family.geometry and not family.model_types] == []


def test_no_type_of_a_model_belongs_to_families_with_different_images() -> None:
    geometries: dict[str, set[str | None]] = {}
    for family in FAMILIES.values():
        for model_type in family.model_types:
            geometries.setdefault(model_type, set()).add(family.geometry)
    assert [model_type for model_type, found in geometries.items() if len(found) > 1] == []
