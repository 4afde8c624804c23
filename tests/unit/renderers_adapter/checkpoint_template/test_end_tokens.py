"""Which tokens end an answer of a model that is rendered with its own chat template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, ChatTemplateError
from renderers_adapter.checkpoint_template.end_tokens import find_end_tokens
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokenizer import load_tokenizer
from tests.unit.renderers_adapter.conversations import joined

Finds = Callable[..., list[str]]

SILENT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
CLOSING = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
TEXT_END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


@pytest.fixture
def finds(tmp_path: Path, tiny_model: Path) -> Finds:
    """Finds the end tokens of a checkpoint that has only the given files and eos token."""

    def find(source: str = SILENT, *, eos: str | None = None, style: str = "", **files: Any) -> list[str]:
        shutil.copy(tiny_model / "tokenizer.json", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos} if eos else {}), "utf-8")
        for name, values in files.items():
            text = values if isinstance(values, str) else json.dumps(values)
            (tmp_path / f"{name}.json").write_text(text, "utf-8")
        tokenizer = MaskingTokenizer(load_tokenizer(tmp_path))
        found = find_end_tokens(tmp_path, ChatTemplate(source), {"style": style}, tokenizer)
        return [text or str(token_id) for token_id, text in found.items()]

    return find


@pytest.fixture(scope="module")
def ids(tiny_model: Path) -> dict[str, int]:
    """The ids of the end tokens."""
    tokenizer = load_tokenizer(tiny_model)
    return {token: tokenizer.token_id(token) for token in (TEXT_END, TURN_START, TURN_END)}


@pytest.mark.parametrize("name", ["generation_config", "config"])
def test_a_file_names_one_end_token(finds: Finds, ids: dict[str, int], name: str) -> None:
    assert finds(**{name: {"eos_token_id": ids[TURN_END]}}) == [TURN_END]


@pytest.mark.parametrize("name", ["generation_config", "config"])
def test_a_file_names_several_end_tokens(finds: Finds, ids: dict[str, int], name: str) -> None:
    assert finds(**{name: {"eos_token_id": [ids[TURN_END], ids[TEXT_END]]}}) == [TURN_END, TEXT_END]


def test_the_tokenizer_names_an_end_token(finds: Finds) -> None:
    assert finds(eos=TEXT_END) == [TEXT_END]


@pytest.mark.parametrize("between", ["", "\n", "  "])
def test_the_template_closes_an_answer_with_an_end_token(finds: Finds, between: str) -> None:
    assert finds(CLOSING.replace(TURN_END, f"{{{{ {between!r} }}}}{TURN_END}")) == [TURN_END]


def test_a_control_token_that_does_not_follow_the_answer_directly_is_no_end_token(finds: Finds) -> None:
    assert finds(CLOSING.replace(TURN_END, f"!{TURN_END}"), eos=TEXT_END) == [TEXT_END]


def test_the_template_closes_an_answer_as_its_arguments_say(finds: Finds) -> None:
    source = CLOSING.replace(TURN_END, f"{{{{ '{TURN_END}' if style == 'turn' else '{TEXT_END}' }}}}")
    assert (finds(source, style="turn"), finds(source)) == ([TURN_END], [TEXT_END])


def test_a_template_that_loops_over_parts_closes_an_answer(finds: Finds) -> None:
    parts = "{% for p in m.content %}{{ p.text }}{% endfor %}"
    assert finds(CLOSING.replace("{{ m.content }}", parts)) == [TURN_END]


@pytest.mark.parametrize("error", ["{{ raise_exception('no system message') }}", "{{ 1 + 'a' }}"])
def test_a_template_that_refuses_a_short_conversation_names_no_end_token(finds: Finds, error: str) -> None:
    assert finds(error + CLOSING, eos=TEXT_END) == [TEXT_END]


def test_all_sources_are_joined_without_repetitions(finds: Finds, ids: dict[str, int]) -> None:
    generation = {"eos_token_id": [ids[TEXT_END], ids[TEXT_END]]}
    found = finds(CLOSING, eos=TEXT_END, generation_config=generation, config={"eos_token_id": ids[TURN_START]})
    assert found == [TEXT_END, TURN_START, TURN_END]


@pytest.mark.parametrize("outside", [-1, 10**6, None, "2"])
def test_an_id_that_the_vocabulary_does_not_have_is_left_out(finds: Finds, ids: dict[str, int], outside: Any) -> None:
    assert finds(generation_config={"eos_token_id": [outside, ids[TURN_END]]}) == [TURN_END]


def test_a_word_as_an_end_token_stops_an_answer_and_has_no_text(finds: Finds, ids: dict[str, int]) -> None:
    assert finds(generation_config={"eos_token_id": [13, ids[TURN_END]]}) == ["13", TURN_END]


def test_ids_without_a_token_are_named_if_nothing_else_ends_an_answer(finds: Finds) -> None:
    with pytest.raises(ChatTemplateError, match="the ids 1000000, -1 are not in the tokenizer"):
        finds(generation_config={"eos_token_id": [10**6, -1]})


@pytest.mark.parametrize("source", [SILENT, CLOSING])
def test_a_conversation_is_rendered_with_a_word_as_an_end_token(tmp_path: Path, tiny_model: Path, source: str) -> None:
    shutil.copy(tiny_model / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source, "utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 13}', "utf-8")
    adapter = RendererAdapter.open(tmp_path, "template")
    assert 13 in adapter.stop_token_ids
    rendered = adapter.render([{"role": "user", "content": "Hello, you."}], None)
    assert "Hello, you." in adapter.tokenizer.decode([*joined(rendered.segments), *rendered.generation_prompt.tolist()])


@pytest.mark.parametrize("values", [{}, {"eos_token_id": None}, {"eos_token_id": []}, {"eos_token_id": 10**6}, []])
def test_a_checkpoint_without_an_end_token_is_refused(finds: Finds, tmp_path: Path, values: Any) -> None:
    with pytest.raises(ChatTemplateError, match="nothing says which token ends an answer") as caught:
        finds(generation_config=values)
    assert str(tmp_path) in str(caught.value)
    assert "Add the checkpoint's generation_config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["generation_config", "config"])
def test_a_broken_file_is_named(finds: Finds, name: str) -> None:
    with pytest.raises(ChatTemplateError, match=rf"{name}\.json cannot be read .*Copy it from the checkpoint again"):
        finds(CLOSING, **{name: "{"})
