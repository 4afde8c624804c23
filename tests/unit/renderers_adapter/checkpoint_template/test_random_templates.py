"""Random templates and conversations: a bridge is right, or it is refused.

The truth does not use the code of bridges. A second template, with sentinels, says where each answer ends. The whole
text is encoded in parts, with the sampled tokens in the place of each answer that a bridge kept.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefused
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from renderers_adapter.tokens import as_logical_ids
from rollout.config.model_directory import BUILTIN_MODELS
from tests.unit.renderers_adapter.checkpoint_template.random_templates import (
    ANY,
    BODY_END,
    HARMLESS,
    REASONING,
    SENTINELS,
    TOKEN_END,
    Features,
)
from tests.unit.renderers_adapter.conversations import joined, rendered_ids

EXAMPLES = 500 if os.environ.get("ROLLOUT_TESTS") in ("ci", "full") else 30
TINY = BUILTIN_MODELS["builtin:tiny"]
TOKENIZER = load_tokenizer(TINY)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
USUAL = ("hi", "two words", " padded ", "a\nb", "é猫👍", "1 + 1", "user", "assistant\n")
ODD = ("", " \n", "magic", "<|im_end|>", "<|im_start|>assistant\n", "<think>", "</think>", "hi<|im_", "\U000f0001")


@dataclass(frozen=True)
class Turn:
    """An answer with its tokens, and the messages after it."""

    answer: dict[str, Any]
    completion: tuple[int, ...]
    added: tuple[dict[str, Any], ...]

    @property
    def is_cut(self) -> bool:
        return self.completion[-1:] not in ((TOKENIZER.token_id("<|im_end|>"),), (TOKENIZER.token_id("<|endoftext|>"),))


@st.composite
def turns(draw: Any, texts: st.SearchStrategy[str], *, is_harmless: bool = False) -> Turn:
    content = draw(texts)
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    said = content
    if draw(st.booleans()):
        answer["reasoning_content"] = draw(texts)
        said = f"<think>\n{answer['reasoning_content']}\n</think>\n\n{content}"
    calls = draw(st.integers(0, 2))
    if calls:
        function = {"name": "look", "arguments": {"what": draw(texts)}}
        answer["tool_calls"] = [{"id": f"call{at}", "type": "function", "function": function} for at in range(calls)]
        said += "".join(f"<tool_call>{json.dumps(function)}</tool_call>" for _ in range(calls))
        added = [{"role": "tool", "tool_call_id": f"call{at}", "content": draw(texts)} for at in range(calls)]
    else:
        added = [{"role": "user", "content": draw(texts)} for _ in range(draw(st.sampled_from((1, 1, 2))))]
    cut = draw(st.integers(0, len(said)))
    ids = [*TOKENIZER.encode(said[:cut]), *TOKENIZER.encode(said[cut:])]
    end = "<|im_end|>" if is_harmless else draw(st.sampled_from(("<|im_end|>",) * 4 + ("<|endoftext|>", "")))
    return Turn(answer, (*ids, *TOKENIZER.encode(end)), tuple(added))


@st.composite
def conversations(
    draw: Any, texts: st.SearchStrategy[str], *, is_harmless: bool = False
) -> tuple[list[dict[str, Any]], list[Turn]]:
    begin = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    begin.append({"role": "user", "content": draw(texts)})
    return begin, draw(st.lists(turns(texts, is_harmless=is_harmless), min_size=1, max_size=4))


def open_adapter(features: Features) -> RendererAdapter:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, directory)
        (directory / "chat_template.jinja").write_text(features.source(), "utf-8")
        ids = [TOKENIZER.token_id("<|im_end|>"), TOKENIZER.token_id("<|endoftext|>")]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), "utf-8")
        return RendererAdapter.open(directory, "template", tokenizer=TOKENIZER)


class Truth:
    """Knows the tokens of a conversation in which the tokens of some answers are as they were sampled."""

    def __init__(self, features: Features, tokenizer: FastTokenizer) -> None:
        self._template = ChatTemplate(features.source(with_sentinels=True))
        self._masking = MaskingTokenizer(tokenizer)

    def ids(
        self, messages: Sequence[dict[str, Any]], tools: Any, sampled: dict[int, Turn]
    ) -> tuple[list[int] | None, str]:
        """Return the tokens with the answers `sampled` in their places; None and why if only a full render is right."""
        masked, masked_tools = self._masking.mask((list(messages), list(tools) if tools else None))
        given = [self._template.for_template(message, masked_tools) for message in masked]
        whole = self._template.render(given, masked_tools, {})
        ids: list[int] = []
        at = 0
        for index, turn in sampled.items():
            prompt = self._template.render(given[:index], masked_tools, {})
            if not whole.startswith(prompt):
                return None, "earlier text changed"
            begin, answer_count = len(prompt), prompt.count(TOKEN_END)
            if whole.count(TOKEN_END) <= answer_count:
                return None, "the answer is not written"
            body_end, token_end = (self._after(whole, mark, answer_count) for mark in (BODY_END, TOKEN_END))
            if (turn.answer.get("reasoning_content") or "").strip() and REASONING not in whole[begin:body_end]:
                return None, "the reasoning is dropped"
            ids += [*self._encode(whole[at:begin]), *turn.completion]
            at = body_end
            if not turn.is_cut:
                closing = self._encode(whole[body_end:token_end].strip())
                if turn.completion[-1] not in closing:
                    return None, "another token closes the answer"
                after = closing[closing.index(turn.completion[-1]) + 1 :]
                ids += after
                at = token_end
        return [*ids, *self._encode(whole[at:])], ""

    @staticmethod
    def _after(text: str, mark: str, count: int) -> int:
        """Return the position after the mark number `count`."""
        at = 0
        for _ in range(count + 1):
            at = text.index(mark, at) + 1
        return at

    def _encode(self, text: str) -> list[int]:
        for sentinel in SENTINELS:
            text = text.replace(sentinel, "")
        return self._masking.encode(text)


def play(features: Features, begin: list[dict[str, Any]], played: list[Turn], tools: Any) -> list[bool]:
    """Play a conversation; check each prompt, and return for each turn whether it was bridged."""
    adapter, truth = open_adapter(features), Truth(features, TOKENIZER)
    messages = list(begin)
    sampled: dict[int, Turn] = {}
    prompt_ids = rendered_ids(adapter, messages, tools)
    assert prompt_ids == truth.ids(messages, tools, {})[0]
    bridged = []
    for turn in played:
        conversation = [*messages, turn.answer]
        sampled[len(messages)] = turn
        messages = [*conversation, *turn.added]
        try:
            tail = adapter.bridge(
                conversation, as_logical_ids([]), as_logical_ids(list(turn.completion)), turn.added, tools
            )
        except BridgeRefused:
            bridged.append(False)
            sampled = {}
            prompt_ids = rendered_ids(adapter, messages, tools)
        else:
            bridged.append(True)
            prompt_ids += [*turn.completion, *joined(tail.segments), *tail.generation_prompt.tolist()]
            assert len(tail.segments) == len(turn.added)
        expected, why = truth.ids(messages, tools, sampled)
        assert prompt_ids == expected, (why, TOKENIZER.decode(prompt_ids), TOKENIZER.decode(expected or []))
    return bridged


@settings(max_examples=EXAMPLES)
@given(ANY, conversations(st.one_of(st.sampled_from(USUAL), st.sampled_from(ODD))), st.sampled_from((None, TOOLS)))
def test_a_bridge_is_right_or_refused(
    features: Features, conversation: tuple[list[dict[str, Any]], list[Turn]], tools: Any
) -> None:
    try:
        play(features, *conversation, tools)
    except UnsupportedConversation:
        assert features.alternates or features.merges_system


@settings(max_examples=EXAMPLES)
@given(HARMLESS, conversations(st.sampled_from(USUAL), is_harmless=True), st.sampled_from((None, TOOLS)))
def test_every_turn_of_a_template_that_never_looks_back_is_bridged(
    features: Features, conversation: tuple[list[dict[str, Any]], list[Turn]], tools: Any
) -> None:
    assert all(play(features, *conversation, tools))


@pytest.mark.parametrize("special", SENTINELS)
def test_no_text_of_a_conversation_is_a_sentinel(special: str) -> None:
    assert not any(special in text for text in (*USUAL, *ODD))
