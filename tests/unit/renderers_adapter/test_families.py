"""Every family by its name: a bridge equals the full render, or is refused; Qwen2(.5)-VL is written by Qwen3-VL's."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderers_adapter.adapter import BridgeRefusalReason, BridgeRefused, RendererAdapter, RendererMismatch
from renderers_adapter.families import FAMILIES, UnknownRenderer, get_family
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.tokens import LogicalIds, as_logical_ids, concat_ids

IMAGE = {"type": "image", "hash": "0" * 32}
SYSTEM = {"role": "system", "content": "Be brief."}
CLOSES_WITH_MORE = {"laguna-m.1", "laguna-xs.2"}
"""Their full render puts a line break after a past answer, which their bridge leaves out; what is said is the same."""

FORGETS_REASONING = {
    *("deepseek-r1", "glm-4.5", "glm-5", "glm-5.1", "gpt-oss", "hy3", "kimi-k2.5", "minimax-m2", "nemotron-3"),
    *("nemotron-3-ultra", "nemotron-3.5", "qwen3", "qwen3.5", "qwen3.6"),
}
"""Their templates drop reasoning from history at a new question, so that what follows is rendered whole."""

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


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def joined(segments: Sequence[Any]) -> list[int]:
    return [token for segment in segments for token in segment.ids.tolist()]


def sampled_part(opening: LogicalIds, past: Any) -> LogicalIds:
    """What was sampled of a past answer: all that is not the opening, where its history begins so."""
    has_prompt = past.ids[: len(opening)].tolist() == opening.tolist()
    return as_logical_ids(past.ids[len(opening) :] if has_prompt else past.ids)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_bridges_a_question_as_it_renders_it_or_says_that_it_forgets_reasoning(
    fitted: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = fitted(family)
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
            adapter.bridge(first.generation_prompt, completion_ids, tail, None)
        assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
        return
    bridged = adapter.bridge(first.generation_prompt, completion_ids, tail, None)
    more = adapter.tokenizer.encode("\n") if family in CLOSES_WITH_MORE else []
    assert [*more, *joined(bridged.segments)] == joined(whole.segments[3:])
    assert np.array_equal(bridged.generation_prompt, whole.generation_prompt)
    assert [segment.image_offsets for segment in bridged.segments] == [whole.segments[3].image_offsets]


@pytest.mark.parametrize("family", sorted(name for name, family in FAMILIES.items() if family.supports_tools))
def test_a_family_calls_a_tool_and_goes_on_from_its_result(
    fitted: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = fitted(family)
    begin = [SYSTEM, {"role": "user", "content": "1 + 2?"}]
    first, whole = adapter.render(begin, TOOLS), adapter.render([*begin, CALL, RESULT], TOOLS)
    assert joined(first.segments) == joined(whole.segments[:2])
    completion_ids = sampled_part(first.generation_prompt, whole.segments[2])
    if family == "deepseek-r1":  # its history is without reasoning, which its opening begins
        completion_ids = as_logical_ids([*adapter.tokenizer.encode("hm</think>"), *completion_ids.tolist()[1:]])
    (call,) = adapter.parse(first.generation_prompt, completion_ids, TOOLS).tool_calls
    assert (call.name, call.arguments, call.error) == ("add", {"a": 1, "b": 2}, None)

    if family == "deepseek-r1":
        with pytest.raises(BridgeRefused) as refusal:
            adapter.bridge(first.generation_prompt, completion_ids, [RESULT], TOOLS)
        assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
        return
    bridged = adapter.bridge(first.generation_prompt, completion_ids, [RESULT], TOOLS)
    more = adapter.tokenizer.encode("\n") if family in CLOSES_WITH_MORE else []
    assert [*more, *joined(bridged.segments)] == joined(whole.segments[3:])
    assert np.array_equal(bridged.generation_prompt, whole.generation_prompt)


def test_gpt_oss_wants_the_name_of_the_tool_that_a_result_is_of(fitted: Callable[[str], RendererAdapter]) -> None:
    adapter = fitted("gpt-oss")
    nameless = {key: value for key, value in RESULT.items() if key != "name"}
    with pytest.raises(UnsupportedConversation, match="message 3 is a tool's result without a `name`"):
        adapter.render([SYSTEM, user("1 + 2?"), CALL, nameless], TOOLS)


def test_gpt_oss_says_which_file_it_lacks(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    with pytest.raises(RendererMismatch, match=r"o200k_base\.tiktoken, was neither found.*TIKTOKEN_ENCODINGS_BASE"):
        RendererAdapter.open(tiny_model, "gpt-oss")


@pytest.mark.parametrize("family", ["qwen3.5", "qwen3.6", "kimi-k2.5"])
def test_reasoning_is_dropped_at_a_new_question_and_kept_for_a_tool(
    fitted: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = fitted(family)
    opening = adapter.render([user("Hi")], None).generation_prompt
    completion_ids = as_logical_ids([*adapter.tokenizer.encode("hm</think>red"), adapter.stop_token_ids[0]])
    with pytest.raises(BridgeRefused) as refusal:
        adapter.bridge(opening, completion_ids, [user("Sure?")], None)
    assert refusal.value.reason is BridgeRefusalReason.THINKING_DROPPED
    result = {"role": "tool", "tool_call_id": "look:0", "content": [IMAGE, {"type": "text", "text": "found"}]}
    (segment,) = adapter.bridge(opening, completion_ids, [result], None).segments
    assert len(segment.image_offsets) == 1


def test_a_template_argument_changes_what_is_kept(tiny_model: Path) -> None:
    no_thinking = RendererAdapter.open(tiny_model, "qwen3.5", {"enable_thinking": False})
    opening = no_thinking.render([user("Hi")], None).generation_prompt
    assert no_thinking.tokenizer.decode(opening.tolist()).endswith("</think>\n\n")
    completion_ids = as_logical_ids([*no_thinking.tokenizer.encode("red"), no_thinking.stop_token_ids[0]])
    assert len(no_thinking.bridge(opening, completion_ids, [user("Sure?")], None).segments) == 1


def test_an_argument_that_no_template_of_the_family_has_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RendererMismatch, match=r"enable_thinking.*correct model.template"):
        RendererAdapter.open(tiny_model, "qwen3-vl", {"enable_thinking": True})


def test_an_argument_that_counts_through_a_conversation_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RendererMismatch, match="'add_vision_id' numbers the images"):
        RendererAdapter.open(tiny_model, "qwen3-vl", {"add_vision_id": True})


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


def test_our_names_are_those_of_the_renderers_package() -> None:
    from renderers.configs import _CONFIG_BY_NAME

    ours = {family.renderer for family in FAMILIES.values()}
    assert ours == set(_CONFIG_BY_NAME) - {"auto", "default", "custom"}


def test_the_documentation_says_of_each_family_what_becomes_of_a_new_question(repository: Path) -> None:
    lines = (repository / "docs" / "traces.md").read_text("utf-8").splitlines()
    rows = [line.split("|")[1:4] for line in lines if line.startswith("| `") and line.count("|") == 4]
    documented = {name: (sees, asked) for names, sees, asked in rows for name in re.findall(r"`([^`]+)`", names)}
    for name, family in FAMILIES.items():
        sees, asked = documented[name]
        assert sees.strip().startswith("yes") == (family.geometry is not None), name
        assert asked.strip().startswith("rendered (`thinking`)") == (name in FORGETS_REASONING), name


def qwen2_vl_template(messages: Sequence[dict[str, Any]]) -> str:
    """What Qwen2-VL and Qwen2.5-VL write for a conversation, and then the opening of the answer."""
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
    """With a tokenizer that has neither tool nor reasoning markup, as theirs."""
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
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
def test_below_a_system_message_qwen2_vl_is_written_as_its_own_template_writes_it(
    qwen2: RendererAdapter, conversation: list[dict[str, Any]]
) -> None:
    rendered = qwen2.render(conversation, None)
    expected = qwen2.tokenizer.encode(qwen2_vl_template(conversation))
    assert [*joined(rendered.segments), *rendered.generation_prompt.tolist()] == expected


def test_a_bridge_of_qwen2_vl_continues_its_own_template(qwen2: RendererAdapter) -> None:
    begin, tail = CONVERSATIONS[0], [user("And this?", IMAGE)]
    first = qwen2.render(begin, None)
    completion_ids: LogicalIds = as_logical_ids([*qwen2.tokenizer.encode("red"), qwen2.stop_token_ids[0]])
    bridged = qwen2.bridge(first.generation_prompt, completion_ids, tail, None)
    parts = (
        *(s.ids for s in first.segments),
        first.generation_prompt,
        completion_ids,
        *(s.ids for s in bridged.segments),
        bridged.generation_prompt,
    )
    expected = qwen2_vl_template([*begin, {"role": "assistant", "content": "red"}, *tail])
    assert concat_ids(*parts).tolist() == qwen2.tokenizer.encode(expected)


def test_a_token_that_the_tokenizer_lacks_is_never_written(qwen2: RendererAdapter) -> None:
    opening = qwen2.render(CONVERSATIONS[0], None).generation_prompt
    unclosed = as_logical_ids(qwen2.tokenizer.encode("<think>\nhm"))
    with pytest.raises(BridgeRefused):
        qwen2.bridge(opening, unclosed, [user("Go on")], None)


@pytest.mark.parametrize(
    ("conversation", "tools", "expected_text"),
    [
        ([user(IMAGE)], None, "would add its own system message"),
        ([SYSTEM, user("a")], [{"type": "function", "function": {"name": "look"}}], "does not support tools"),
        ([SYSTEM, user("a"), {"role": "tool", "content": "b"}], None, "does not support tools"),
    ],
)
def test_what_qwen2_vl_would_write_differently_is_refused(
    qwen2: RendererAdapter, conversation: list[dict[str, Any]], tools: Any, expected_text: str
) -> None:
    with pytest.raises(UnsupportedConversation, match=expected_text):
        qwen2.render(conversation, tools)
