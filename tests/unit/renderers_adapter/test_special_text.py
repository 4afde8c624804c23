"""Control tokens that a message spells stay text; only the template writes control tokens."""

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefused
from renderers_adapter.families import FAMILIES
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.special_text import MaskingTokenizer, SpecialTextRefused
from renderers_adapter.tokenizer import FastTokenizer, TokenizerError, load_tokenizer
from renderers_adapter.tokens import PlaceholderError, as_logical_ids
from tests.unit.renderers_adapter.conversations import BUILT_IN, IMAGE, SYSTEM, rendered_ids, user

HARMLESS = "harmless"


Conversation = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]


def with_every_role(adapter: RendererAdapter, text: str) -> Conversation:
    """Return messages in which every role says the text, between other words."""

    def ask(words: str) -> dict[str, Any]:
        return {"role": "user", "content": words} if adapter.pad_id is None else user(IMAGE, words)

    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"Be {text} brief."},
        ask(f"What is {text} it?"),
        {"role": "assistant", "content": f"It {text} is."},
        ask(f"And {text} now?"),
    ]
    return messages, None


def with_tools(_: RendererAdapter, text: str) -> Conversation:
    call = {"name": "add", "arguments": {"a": f"x {text} y", "b": 2}}
    messages: list[dict[str, Any]] = [
        SYSTEM,
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": f"I {text} think",
            "tool_calls": [{"id": "functions.add:0", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "functions.add:0", "name": "add", "content": f"3 {text} 3"},
    ]
    argument = {"type": "string", "description": f"An {text} argument.", "enum": [f"e {text}"]}
    function = {
        "name": "add",
        "description": f"Adds {text} all.",
        "parameters": {"type": "object", "properties": {"a": argument, f"p{text}": argument}, "required": [f"p{text}"]},
    }
    return messages, [{"type": "function", "function": function}]


def split_at_control_tokens(
    adapter: RendererAdapter, messages: Sequence[Any], tools: Sequence[Any] | None = None
) -> tuple[list[int], list[str]]:
    """Return the control tokens of a render, and the texts between them."""
    tokenizer, ids = adapter.tokenizer, rendered_ids(adapter, messages, tools)
    positions = [at for at, token in enumerate(ids) if token in tokenizer.control_ids]
    edges = zip([-1, *positions], [*positions, len(ids)], strict=True)
    return [ids[at] for at in positions], [as_unescaped(tokenizer.decode(ids[begin + 1 : end])) for begin, end in edges]


def as_unescaped(text: str) -> str:
    """Return the text without JSON's escapes, which some templates write for characters beyond ASCII."""
    return re.sub(r"\\u([0-9a-f]{4})", lambda escape: chr(int(escape[1], 16)), text)


@pytest.mark.parametrize("family", BUILT_IN)
def test_control_tokens_that_messages_and_tools_spell_are_text(
    adapter_for: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = adapter_for(family)
    # The library of gpt-oss renders the tools, and it is not installed.
    makers = [with_tools] if FAMILIES[family].supports_tools and family != "gpt-oss" else []
    for make in (with_every_role, *makers):
        text = " ".join(adapter.tokenizer.control_tokens)
        controls, texts = split_at_control_tokens(adapter, *make(adapter, text))
        expected_controls, expected_texts = split_at_control_tokens(adapter, *make(adapter, HARMLESS))
        assert controls == expected_controls
        assert texts == [expected.replace(HARMLESS, as_unescaped(text)) for expected in expected_texts]


@pytest.mark.parametrize("family", ["deepseek-v3", "kimi-k2", "laguna-xs.2", "llama-3", "qwen3-vl", "qwen2-vl"])
def test_a_bridge_encodes_control_tokens_like_a_full_render(
    adapter_for: Callable[[str], RendererAdapter], family: str
) -> None:
    adapter = adapter_for(family)
    begin = [SYSTEM, {"role": "user", "content": "Hi"}]
    tail = {"role": "user", "content": " ".join(adapter.tokenizer.control_tokens)}
    answer = as_logical_ids([*adapter.tokenizer.encode("red"), adapter.stop_token_ids[0]])
    opening = adapter.render(begin, None).generation_prompt
    bridged = adapter.bridge([], opening, answer, [tail], None)
    whole = adapter.render([*begin, {"role": "assistant", "content": "red"}, tail], None)
    expected = whole.segments[3].ids.tolist()
    # The full render of two families has a line break after a past answer; their bridge has none.
    assert bridged.segments[0].ids.tolist() in (expected, expected[1:])


@pytest.mark.parametrize(
    ("parts", "control_token"),
    [
        (("<|im_", "end|>"), "<|im_end|>"),
        (("<", "|im_end|>"), "<|im_end|>"),
        (("<t", "hin", "k>"), "<think>"),
        (("<|im_end|", ">"), "<|im_end|>"),
    ],
)
def test_parts_that_spell_a_control_token_together_are_text(
    adapter: RendererAdapter, parts: tuple[str, ...], control_token: str
) -> None:
    (segment,) = adapter.render([user(*parts)], None).segments
    begin, end = segment.content_spans[0]
    said = segment.ids.tolist()[begin:end]
    assert said == adapter.tokenizer.encode_as_text(control_token)["input_ids"]


def test_a_tool_that_echoes_the_placeholder_is_text_beside_an_image(adapter: RendererAdapter) -> None:
    echo = "<|vision_start|><|image_pad|><|vision_end|>"
    (segment,) = adapter.render([user(echo, IMAGE, echo)], None).segments
    assert len(segment.image_offsets) == 1
    assert adapter.tokenizer.decode(segment.ids.tolist()).count("<|image_pad|>") == 3


@pytest.mark.parametrize("texts", [("<|im_ ", " end|>"), ("<|im_", "end|>"), (" <|im_\t", "\n end|> ")])
def test_parts_that_a_template_joins_without_their_white_space_are_text(
    tiny_model: Path, texts: tuple[str, str]
) -> None:
    tokenizer = MaskingTokenizer(load_tokenizer(tiny_model))
    masked = tokenizer.mask([{"content": text} for text in texts])
    joined = "".join(message["content"].strip() for message in (*masked, masked[0]))
    assert not tokenizer.control_ids.intersection(tokenizer.encode(joined))


@pytest.mark.parametrize("text", ["a < b and c > d", "<", "> quoted", "<|im_", "end|> <", "[<b>]</b> <thin k>"])
def test_text_that_only_resembles_control_tokens_has_its_usual_ids(tiny_model: Path, text: str) -> None:
    adapters = [
        RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions(special_text=mode)) for mode in SpecialText
    ]
    assert len({tuple(rendered_ids(adapter, *with_every_role(adapter, text))) for adapter in adapters}) == 1


@pytest.mark.parametrize("parts", [("＜think＞",), ("＜thi", "nk>")])
def test_text_that_a_normalizer_makes_a_control_token_is_text(
    tmp_path: Path, tiny_model: Path, parts: tuple[str, ...]
) -> None:
    settings = json.loads((tiny_model / "tokenizer.json").read_text("utf-8"))
    settings["normalizer"] = {"type": "NFKC"}
    for token in settings["added_tokens"]:
        token["normalized"] = not token["special"]
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings), "utf-8")
    adapter = RendererAdapter.open(tmp_path, "qwen3-vl")
    think = adapter.tokenizer.token_id("<think>")
    assert adapter.tokenizer.encode("".join(parts)) == [think]
    ids = rendered_ids(adapter, [user(*parts)])
    assert think not in ids
    assert "<think>" in adapter.tokenizer.decode(ids)


def test_a_control_token_that_is_a_word_of_the_vocabulary_is_written_in_pieces(tiny_model: Path) -> None:
    settings = json.loads((tiny_model / "tokenizer.json").read_text("utf-8"))
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "<think>": 1, "<": 2, "think>": 3}, "unk_token": "<unk>"}
    added = [{**settings["added_tokens"][0], "id": 1, "content": "<think>"}]
    changed = {**settings, "model": model, "pre_tokenizer": None, "post_processor": None, "added_tokens": added}
    tokenizer = FastTokenizer(Tokenizer.from_str(json.dumps(changed)), name_or_path="words")
    assert tokenizer.encode("<think>") == [1]
    assert tokenizer.encode_as_text("<think>") == {"input_ids": [2, 3], "offset_mapping": [(0, 1), (1, 7)]}


def test_escapes_that_a_message_spells_stay_unchanged(adapter: RendererAdapter) -> None:
    text = "<think> " + " ".join(f"\\ud8{low:02x}" for low in range(256))
    assert text in adapter.tokenizer.decode(rendered_ids(adapter, [user(text)]))


def test_a_key_of_a_tool_that_a_template_writes_as_a_tag_is_text(adapter_for: Callable[[str], RendererAdapter]) -> None:
    adapter = adapter_for("nemotron-3")

    def controls(key: str) -> list[int]:
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", key: "x"}}}
        return split_at_control_tokens(adapter, [user("Hi")], [tool])[0]

    assert controls("think") == controls("harmless")


def test_text_that_spells_a_control_token_can_be_refused(tiny_model: Path) -> None:
    adapter = RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions(special_text=SpecialText.REFUSE))
    with pytest.raises(
        SpecialTextRefused, match=r"the user message 1 contains the control token '<\|im_end\|>' at cha"
    ):
        adapter.render([{"role": "system", "content": "Be brief."}, user("Hi", "so <|im_end|>")], None)
    opening = adapter.render([user("Hi")], None).generation_prompt
    with pytest.raises(BridgeRefused):  # the full render that follows names the message
        adapter.bridge([], opening, as_logical_ids([adapter.stop_token_ids[0]]), [user("<|im_end|>")], None)
    with pytest.raises(SpecialTextRefused, match=r"the tool 0 contains the control token '</tool_call>'"):
        adapter.render([user("Hi")], [{"type": "function", "function": {"name": "x</tool_call>"}}])


def test_an_answer_of_the_policy_is_never_refused(tiny_model: Path) -> None:
    adapter = RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions(special_text=SpecialText.REFUSE))
    said = {"role": "assistant", "content": "<tool_call>\nnonsense"}
    ids = rendered_ids(adapter, [user("Hi"), said, user("So?")])
    assert adapter.tokenizer.token_id("<tool_call>") not in ids


def test_control_tokens_can_be_allowed(tiny_model: Path) -> None:
    adapter = RendererAdapter.open(tiny_model, "qwen3-vl", RendererOptions(special_text=SpecialText.ALLOW))
    ids = rendered_ids(adapter, [user("<think>")])
    assert adapter.tokenizer.token_id("<think>") in ids
    with pytest.raises(PlaceholderError, match="message 0 has 0 images, but its tokens contain 1"):
        adapter.render([user("<|image_pad|>")], None)


@pytest.mark.parametrize("as_json", [False, True])
def test_masking_takes_little_memory_for_each_character(as_json: bool) -> None:
    backend = Tokenizer(WordLevel({"?": 0, "<|im_end|>": 1}, unk_token="?"))
    backend.add_special_tokens(["<|im_end|>"])
    masking = MaskingTokenizer(FastTokenizer(backend, name_or_path="one"))
    masked = masking.mask("<|im_end|>" * 10_000)
    template_text = json.dumps(masked) if as_json else masked
    tracemalloc.start()
    try:
        encoded = masking(template_text, return_offsets_mapping=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert encoded == {"input_ids": [0], "offset_mapping": [(0, len(template_text))]}
    assert peak_bytes < 30 * len(template_text)


def test_a_lone_surrogate_beside_a_control_token_is_refused_at_its_position(adapter: RendererAdapter) -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate .* at character 8"):
        adapter.render([user("<think> \ud83d")], None)
    assert len(adapter.render([user("Hi")], None).segments) == 1


def test_an_error_of_a_template_quotes_the_original_text(adapter_for: Callable[[str], RendererAdapter]) -> None:
    adapter = adapter_for("kimi-k2")
    adapter.__dict__["_renderer"].render = lambda messages, **_: (_ for _ in ()).throw(ValueError(str(messages)))
    with pytest.raises(UnsupportedConversation) as refusal:
        adapter.render([user("<think>")], None)
    assert "<think>" in str(refusal.value)
    assert refusal.value.__cause__ is None
