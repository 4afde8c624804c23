"""Renders texts that look like control tokens, or like parts of them, for several families.

A conversation with such texts is rendered or bridged, and also the same conversation with harmless words instead. Both
must have the same control tokens in the same order, with the original texts between them.

python -m tests.fuzz.fuzz_special_text --count 20000 --seed 0
"""

import functools
import itertools
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefused
from renderers_adapter.errors import AdapterError
from renderers_adapter.families import FAMILIES
from renderers_adapter.rendered import RenderedMessages
from renderers_adapter.tokens import LogicalIds, as_logical_ids
from rollout.config.model_directory import BUILTIN_MODELS
from tests.fuzz.fuzzing import fuzz
from tests.unit.renderers_adapter.conftest import fit_to

FAMILY_NAMES = ("qwen3-vl", "kimi-k2.5", "qwen2-vl", "llama-3", "deepseek-v3", "nemotron-3", "hy3", "gemma4", "glm-5")
IMAGE = {"type": "image", "hash": "0" * 32}
ORDINARY = (" ", "\n", "a", "The end.", "é", "猫", "👍", "\u0301", "a < b > c", "<", ">", "|", "</", "[", "]", "user\n")
ESCAPES = ("\\n", "\\ud83d", "\\udc00", '"', "&lt;")
WORD = re.compile(r"q(\d+)z")

Conversation = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]
Case = tuple[str, Conversation, Conversation, Sequence[str], int]
"""The family, the hostile and the harmless conversation, the text for each word, how many messages are bridged."""


@functools.cache
def adapter_of(family: str) -> RendererAdapter:
    with tempfile.TemporaryDirectory() as directory:
        return fit_to(Path(directory), BUILTIN_MODELS["builtin:tiny"], family)


class Writer:
    """Writes harmless texts, with a numbered word in place of each piece of a control token."""

    def __init__(self, chance: random.Random, tokens: Sequence[str]) -> None:
        self.chance, self.tokens = chance, tokens
        self.pieces: list[str] = []

    def text(self, longest: int = 3) -> str:
        """Return a harmless text, which may be empty."""
        return "".join(self._piece() for _ in range(self.chance.randint(0, longest)))

    def _piece(self) -> str:
        kind = self.chance.random()
        if kind < 0.4:
            return self.chance.choice(ESCAPES if kind < 0.05 else ORDINARY)
        token = self.chance.choice(self.tokens)
        cut = self.chance.randint(1, len(token) - 1)
        pieces = (token,) if kind < 0.7 else (token[:cut], token[cut:]) if kind < 0.85 else (token[:cut],)
        self.pieces += pieces
        return "".join(f"q{len(self.pieces) - len(pieces) + at}z" for at in range(len(pieces)))

    def name(self) -> str:
        """Return a harmless text that is not empty."""
        return f"n{self.text(2)}"


def make(chance: random.Random) -> Case:
    family = chance.choice(FAMILY_NAMES)
    adapter = adapter_of(family)
    writer = Writer(chance, adapter.tokenizer.control_tokens)

    def content() -> Any:
        if chance.random() < 0.5:
            return f"x{writer.text()}"
        images = [IMAGE] * chance.randint(0, 2) if adapter.pad_id is not None else []
        parts = [*({"type": "text", "text": writer.text()} for _ in range(chance.randint(1, 3))), *images]
        chance.shuffle(parts)
        return parts

    messages: list[dict[str, Any]] = [{"role": "system", "content": f"Be {writer.text()}"}]
    tools = None
    messages += ({"role": "user", "content": content()} for _ in range(chance.randint(1, 2)))
    if FAMILIES[family].supports_tools and chance.random() < 0.4:
        name = writer.name()
        tools = [tool(writer, name)]
        call = {"name": name, "arguments": {f"a{writer.text(2)}": writer.text(), "b": [1, writer.text(2)]}}
        identity = f"functions.{name}:0"
        messages += [
            {
                "role": "assistant",
                "content": writer.text(2),
                "reasoning_content": writer.text(2),
                "tool_calls": [{"id": identity, "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": identity, "name": name, "content": content()},
        ]
    else:
        messages += [{"role": "assistant", "content": f"It {writer.text()}"}, {"role": "user", "content": content()}]
    bridged = len(messages) - next(at for at, message in enumerate(messages) if message["role"] == "assistant") - 1
    hostile = map_texts((messages, tools), lambda text: with_pieces(text, writer.pieces))
    return family, hostile, (messages, tools), writer.pieces, bridged if chance.random() < 0.4 else 0


def tool(writer: Writer, name: str) -> dict[str, Any]:
    argument = {"type": "string", "description": writer.text(), "enum": [writer.name()]}
    key = f"k{writer.text(1)}"
    parameters = {"type": "object", "properties": {key: argument, "b": {"type": "array"}}, "required": [key]}
    return {
        "type": "function",
        "function": {"name": name, "description": f"It {writer.text()}", "parameters": parameters},
    }


def with_pieces(text: str, pieces: Sequence[str]) -> str:
    return WORD.sub(lambda word: pieces[int(word[1])], text)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_texts(item, change) for key, item in value.items()}
    return type(value)(map_texts(item, change) for item in value) if isinstance(value, list | tuple) else value


def attempt(case: Case) -> str:
    family, hostile, harmless, pieces, bridged = case
    adapter = adapter_of(family)
    controls, texts = split(adapter, write(adapter, hostile, bridged))
    expected_controls, expected_texts = split(adapter, write(adapter, harmless, bridged))
    assert controls == expected_controls, (controls, expected_controls)
    for text, expected in itertools.zip_longest(texts, expected_texts):
        said = with_pieces(expected, pieces)
        assert without_escapes(text) == without_escapes(said), (text, said)
    return "bridged as text" if bridged else "rendered as text"


def write(adapter: RendererAdapter, conversation: Conversation, bridged: int) -> RenderedMessages:
    messages, tools = conversation
    if not bridged:
        return adapter.render(messages, tools)
    return adapter.bridge([], *answered(adapter), messages[-bridged:], tools)


@functools.cache
def answered(adapter: RendererAdapter) -> tuple[LogicalIds, LogicalIds]:
    """Return the opening of an answer, and an answer."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = as_logical_ids([*adapter.tokenizer.encode("red"), adapter.stop_token_ids[0]])
    return adapter.render(messages, None).generation_prompt, answer


def split(adapter: RendererAdapter, rendered: RenderedMessages) -> tuple[list[int], list[str]]:
    """Return the control tokens, and the texts between them."""
    ids = [*(token for segment in rendered.segments for token in segment.ids.tolist())]
    control_at = [at for at, token in enumerate(ids) if token in adapter.tokenizer.control_ids]
    edges = zip([-1, *control_at], [*control_at, len(ids)], strict=True)
    return [ids[at] for at in control_at], [adapter.tokenizer.decode(ids[begin + 1 : end]) for begin, end in edges]


def without_escapes(text: str) -> str:
    """Return the text without JSON escapes; what a template escapes depends on the neighbouring characters."""
    return re.sub(r"\\u([0-9a-f]{4})", lambda escape: chr(int(escape[1], 16)), text).replace("\\", "")


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(AdapterError, BridgeRefused), operations=400_000))
