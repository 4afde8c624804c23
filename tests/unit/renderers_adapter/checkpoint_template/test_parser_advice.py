"""The parsers that are proposed for a chat template."""

import shutil
from pathlib import Path

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.answer_parser import TOOL_PARSERS
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.checkpoint_template.parser_advice import ParserAdvice, advise_parsers
from renderers_adapter.families import ALL_MEDIA_TOKENS
from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from tests.unit.renderers_adapter.conftest import add_tokens

LOOP = "{% for call in message.tool_calls %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    """A tokenizer with the control tokens of all parsers."""
    directory = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "model")
    tokens = dict.fromkeys(token for parser in TOOL_PARSERS.values() for token in parser.tokens.values())
    add_tokens(directory / "tokenizer.json", list(tokens))
    return load_tokenizer(directory)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('<tool_call>\n{"name": "', "qwen3"),
        ("<tool_call>\n<function=", "qwen3.5"),
        ("<tool_call>{{ call.name }}<arg_key>", "glm"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function", "deepseek-v3"),
        ("<|tool_calls_section_begin|>", "kimi-k2"),
        ("<minimax:tool_call>", "minimax-m2"),
        ('{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}', "llama-3"),
        ("[TOOL_CALLS]", None),
    ],
)
def test_the_parser_of_calls_is_found_by_the_text_of_the_template(
    tokenizer: FastTokenizer, written: str, name: str | None
) -> None:
    template = ChatTemplate("", tools_source=f"{LOOP}{written}{{% endfor %}}")
    assert advise_parsers(template, tokenizer).tool_parser == name


def test_a_template_without_calls_gets_no_parser_of_calls(tokenizer: FastTokenizer) -> None:
    assert advise_parsers(ChatTemplate("Write <tool_call>"), tokenizer) == ParserAdvice(None, None)


def test_a_parser_whose_tokens_are_missing_is_not_proposed(tiny_model: Path) -> None:
    template = ChatTemplate(f"{LOOP}<｜tool▁calls▁begin｜>{{% endfor %}}")
    assert advise_parsers(template, load_tokenizer(tiny_model)).tool_parser is None


def test_a_template_with_reasoning_gets_the_parser_of_reasoning(tokenizer: FastTokenizer) -> None:
    template = ChatTemplate("<think>{{ message.reasoning_content }}</think>")
    assert advise_parsers(template, tokenizer) == ParserAdvice(None, "think")


def test_a_policy_must_not_sample_the_media_tokens_of_any_family(tiny_model: Path) -> None:
    adapter = RendererAdapter.open(tiny_model, "template")
    tokenizer = adapter.tokenizer
    assert {tokenizer.decode([token]) for token in adapter.media_ids} == {
        token for token in ALL_MEDIA_TOKENS if token in tokenizer.control_tokens
    }
    assert tokenizer.token_id("<|image_pad|>") in adapter.media_ids
    assert adapter.pad_id is None
