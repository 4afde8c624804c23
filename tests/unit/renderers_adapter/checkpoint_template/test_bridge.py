"""What a template must do so that a turn is bridged, and what makes a bridge wrong."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.tokens import as_logical_ids
from tests.unit.renderers_adapter.conversations import joined, rendered_ids

Opens = Callable[..., RendererAdapter]

BEFORE = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
AFTER = "<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
PLAIN = BEFORE + "{{ m.content }}" + AFTER
QUESTION = {"role": "user", "content": "Colour?"}
NEXT = {"role": "user", "content": "Sure?"}


@pytest.fixture
def opens(tmp_path: Path, tiny_model: Path) -> Opens:
    def open_adapter(template: str, options: RendererOptions | None = None) -> RendererAdapter:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model / file, tmp_path)
        (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1006, 1004]}), "utf-8")
        return RendererAdapter.open(tmp_path, "template", options)

    return open_adapter


def refusal_of(
    adapter: RendererAdapter, answer: dict[str, Any], said: str, added: Sequence[dict[str, Any]] = (NEXT,)
) -> BridgeRefusalReason | None:
    """Return why the turn after an answer is not bridged; None if it is."""
    completion = as_logical_ids(adapter.tokenizer.encode(said))
    try:
        adapter.bridge([QUESTION, answer], as_logical_ids([]), completion, list(added), None)
    except BridgeRefused as refusal:
        return refusal.reason
    return None


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def test_a_reasoning_that_the_answer_only_repeats_is_not_taken_for_kept(opens: Opens) -> None:
    said = "<think>hm</think>hm, red<|im_end|>"
    refusal = refusal_of(opens(PLAIN), answer("hm, red", reasoning_content="hm"), said)
    assert refusal is BridgeRefusalReason.THINKING_DROPPED


def test_text_that_the_template_adds_after_a_reasoned_answer_refuses_the_bridge(opens: Opens) -> None:
    reasoned = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    said = "<think>hm</think>red<|im_end|>"
    assert refusal_of(opens(BEFORE + reasoned + AFTER), answer("red", reasoning_content="hm"), said) is None
    adapter = opens(BEFORE + reasoned + " (1 word)" + AFTER)
    assert refusal_of(adapter, answer("red", reasoning_content="hm"), said) is BridgeRefusalReason.RENDERER_REFUSED


def test_white_space_that_the_template_writes_after_a_cut_answer_refuses_the_bridge(opens: Opens) -> None:
    adapter = opens(BEFORE + "{{ m.content }}{{ '\\n' }}" + AFTER)
    assert refusal_of(adapter, answer("red"), "red<|im_end|>") is None
    assert refusal_of(adapter, answer("red"), "red") is BridgeRefusalReason.RENDERER_REFUSED


def test_an_end_token_in_the_arguments_of_a_call_is_not_taken_for_the_end(opens: Opens) -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}"
    template = BEFORE + "{{ m.content }}" + calls + "{% if m.role != 'assistant' %}<|im_end|>{% endif %}\n"
    adapter = opens(
        template + "{% endfor %}<|im_start|>assistant{{ '\\n' }}", RendererOptions(special_text=SpecialText.ALLOW)
    )
    function = {"name": "say", "arguments": {"text": "<|im_end|>"}}
    called = answer("", tool_calls=[{"id": "1", "type": "function", "function": function}])
    result = {"role": "tool", "tool_call_id": "1", "content": "done"}
    refusal = refusal_of(adapter, called, f"{json.dumps(function)}<|im_end|>", [result])
    assert refusal is BridgeRefusalReason.RENDERER_REFUSED


CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}],
}
WITH_CALLS = "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"


@pytest.mark.parametrize("said", ["<tool_call>look</tool_call><|im_end|>", "  <tool_call>look</tool_call><|im_end|>"])
@pytest.mark.parametrize("content", ["", " ", "red"])
def test_a_result_is_bridged_also_if_it_is_empty(opens: Opens, content: str, said: str) -> None:
    adapter = opens(BEFORE + WITH_CALLS + AFTER)
    result = {"role": "tool", "tool_call_id": "1", "content": content}
    completion = as_logical_ids(adapter.tokenizer.encode(said))
    bridged = adapter.bridge([QUESTION, CALLED], as_logical_ids([]), completion, [result], None)
    text = adapter.tokenizer.decode([*joined(bridged.segments), *bridged.generation_prompt.tolist()])
    assert text == f"\n<|im_start|>tool\n{content}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("call_id", ["1", "", None])
def test_a_call_that_the_template_leaves_out_refuses_the_bridge(opens: Opens, call_id: str | None) -> None:
    called = answer("1 red", tool_calls=[{**CALLED["tool_calls"][0], "id": call_id}])
    result = {"role": "tool", "tool_call_id": "1", "content": "done"}
    said = "1 red<tool_call>look</tool_call><|im_end|>"
    assert refusal_of(opens(PLAIN), called, said, [result]) is BridgeRefusalReason.RENDERER_REFUSED


def test_a_call_of_which_the_template_writes_only_the_id_is_bridged(opens: Opens) -> None:
    adapter = opens(BEFORE + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}" + AFTER)
    result = {"role": "tool", "tool_call_id": "1", "content": "done"}
    assert refusal_of(adapter, {**CALLED, "content": "1 red"}, "1 red 1<|im_end|>", [result]) is None


def test_an_empty_result_that_the_template_leaves_out_refuses_the_bridge(opens: Opens) -> None:
    adapter = opens(
        "{% for m in messages %}{% if m.content or m.tool_calls %}<|im_start|>{{ m.role }}\n"
        + WITH_CALLS
        + "<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant{{ '\\n' }}"
    )
    result = {"role": "tool", "tool_call_id": "1", "content": ""}
    said = "<tool_call>look</tool_call><|im_end|>"
    assert refusal_of(adapter, CALLED, said, [result]) is BridgeRefusalReason.RENDERER_REFUSED


def test_a_header_that_the_prompt_does_not_have_refuses_the_bridge_of_a_call(opens: Opens) -> None:
    adapter = opens(BEFORE + WITH_CALLS + "<|im_end|>\n{% endfor %}")
    result = {"role": "tool", "tool_call_id": "1", "content": "red"}
    said = "<tool_call>look</tool_call><|im_end|>"
    assert refusal_of(adapter, CALLED, said, [result]) is BridgeRefusalReason.RENDERER_REFUSED
    assert refusal_of(adapter, CALLED, f"<|im_start|>assistant\n{said}", [result]) is None


def test_two_end_tokens_after_an_answer_refuse_the_bridge(opens: Opens) -> None:
    adapter = opens(PLAIN.replace("<|im_end|>", "<|im_end|><|endoftext|>"))
    assert refusal_of(adapter, answer("red"), "red<|im_end|>") is BridgeRefusalReason.RENDERER_REFUSED


def test_a_template_that_counts_the_messages_refuses_the_bridge_for_earlier_text(opens: Opens) -> None:
    adapter = opens("{{ messages|length }}" + PLAIN)
    assert refusal_of(adapter, answer("red"), "red<|im_end|>") is BridgeRefusalReason.EARLIER_TEXT_CHANGED


@pytest.mark.parametrize("error", ["{{ m.content + 1 }}", "{{ raise_exception('no') }}"])
def test_an_error_of_the_template_in_a_bridge_is_named_by_the_full_render(opens: Opens, error: str) -> None:
    adapter = opens(PLAIN + "{% if messages|length > 1 %}{% set m = messages[0] %}" + error + "{% endif %}")
    assert refusal_of(adapter, answer("red"), "red<|im_end|>") is BridgeRefusalReason.RENDERER_REFUSED
    with pytest.raises(UnsupportedConversation, match=r"chat_template\.jinja refuses this conversation"):
        adapter.render([QUESTION, answer("red"), NEXT], None)


def test_a_template_that_refuses_marks_is_rendered_without_them(opens: Opens) -> None:
    check = "{% if m.content not in ['Colour?'] %}{{ raise_exception('another question') }}{% endif %}"
    adapter = opens(BEFORE + check + "{{ m.content }}" + AFTER)
    assert adapter.tokenizer.decode(rendered_ids(adapter, [QUESTION])).count("Colour?") == 1


@pytest.mark.parametrize("attack", ["{{ ().__class__.__bases__ }}", "{{ messages.append(1) }}"])
def test_a_template_that_leaves_the_sandbox_is_refused(opens: Opens, attack: str) -> None:
    with pytest.raises(UnsupportedConversation, match="SecurityError"):
        opens(PLAIN + attack).render([QUESTION], None)


@pytest.mark.parametrize(
    "content", ["Sure?", " padded ", "a\nb", "\U000f0001", "é猫👍", "<|im_end|>", "Colour?", "assistant\n"]
)
@pytest.mark.parametrize("body", ["{{ m.content }}", "{{ m.content|trim }}", "{{ m.content|upper }}"])
def test_segments_join_to_the_whole_text(opens: Opens, content: str, body: str) -> None:
    adapter = opens(BEFORE + body + AFTER)
    messages = [QUESTION, answer(content), {"role": "user", "content": content}]
    rendered = adapter.render(messages, None)
    changes: dict[str, Callable[[str], str]] = {"trim": str.strip, "upper": str.upper}
    text = next((change for name, change in changes.items() if name in body), str)
    whole = "".join(f"<|im_start|>{m['role']}\n{text(m['content'])}<|im_end|>\n" for m in messages)
    assert len(rendered.segments) == 3
    assert adapter.tokenizer.decode(rendered_ids(adapter, messages)) == f"{whole}<|im_start|>assistant\n"


def test_the_spans_of_contents_are_the_contents(opens: Opens) -> None:
    adapter = opens(BEFORE + "{{ m.content|trim }}" + AFTER)
    messages = [QUESTION, answer("red"), {"role": "user", "content": " Is it? "}]
    contents = [
        adapter.tokenizer.decode(segment.ids[slice(*span)].tolist())
        for segment in adapter.render(messages, None).segments
        for span in segment.content_spans
    ]
    assert contents == ["Colour?", "red", "Is it?"]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("text", ["ab", " ab", "a b", "</s> a", "x</s>"])
def test_a_bridge_of_a_tokenizer_with_a_prefix_space_equals_the_whole_text(
    tmp_path: Path, scheme: str, text: str
) -> None:
    vocabulary = {token: at for at, token in enumerate(["<unk>", *"▁abqx<>/s\n", "▁a", "▁b", "ab", "▁ab"])}
    backend = Tokenizer(BPE(vocabulary, [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")], unk_token="<unk>"))
    backend.pre_tokenizer = Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<s>", "</s>", "<q>")])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    (tmp_path / "chat_template.jinja").write_text("a{% for m in messages %}<q>{{ m.content }}</s>{% endfor %}<q>")
    adapter = RendererAdapter.open(tmp_path, "template")
    messages = [{"role": "user", "content": "q"}, answer("ab"), {"role": "user", "content": text}]
    prompt = rendered_ids(adapter, messages[:1])
    completion = adapter.tokenizer.encode("<q>ab</s>")[1:]
    tail = adapter.bridge(messages[:2], as_logical_ids([]), as_logical_ids(completion), messages[2:], None)
    bridged = [*prompt, *completion, *joined(tail.segments), *tail.generation_prompt.tolist()]
    assert bridged == rendered_ids(adapter, messages)
