"""The parsers of answers that a configuration names, for the renderer `template`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.answer_parser import REASONING_PARSERS, TOOL_PARSERS, UnknownParser
from renderers_adapter.options import RendererOptions
from renderers_adapter.rendered import ParsedCompletion
from renderers_adapter.tokens import as_logical_ids
from tests.unit.renderers_adapter.conftest import add_tokens

OPENING = "<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=say>\n<parameter=text>\nhello\n</parameter>\n</function>\n</tool_call>"
GLM_CALL = "<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>hello</arg_value>\n</tool_call>"
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get-sum\n"
    '```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
    '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>'
)
MINIMAX_CALL = (
    '<minimax:tool_call>\n<invoke name="say">\n<parameter name="text">hello</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)
LLAMA_CALL = '{"name": "add", "parameters": {"a": 1}}'
CALLS = {
    "qwen3": CALL,
    "qwen3.5": XML_CALL,
    "glm": GLM_CALL,
    "deepseek-v3": DEEPSEEK_CALL,
    "kimi-k2": KIMI_CALL,
    "minimax-m2": MINIMAX_CALL,
    "llama-3": LLAMA_CALL,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "say",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        },
    }
]
BUILT_IN = {
    "qwen3": ("qwen3", "think"),
    "qwen3.5": ("qwen3.5", "think"),
    "glm-4.5": ("glm", "think"),
    "deepseek-v3": ("deepseek-v3", "think"),
    "kimi-k2": ("kimi-k2", "think"),
    "minimax-m2": ("minimax-m2", "think"),
    "llama-3": ("llama-3", None),
}
"""The families whose renderers parse the formats of the named parsers."""

DIFFERENT = {("glm-4.5", "<think>\nCALL\n</think>\n\nred")}
"""Answers that the built-in renderer parses in another way: a call of GLM-4.5 counts also in reasoning with an end."""


class Parser:
    """Parses texts as the renderer `template` does with these parsers."""

    def __init__(self, adapter: RendererAdapter) -> None:
        self.adapter = adapter

    def ids(self, text: str) -> list[int]:
        return self.adapter.tokenizer.encode(text)

    def __call__(self, answer: str | list[int], opening: str = OPENING, tools: Any = None) -> ParsedCompletion:
        ids = self.ids(answer) if isinstance(answer, str) else answer
        return self.adapter.parse(as_logical_ids(self.ids(opening)), as_logical_ids(ids), tools)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with the control tokens of all parsers."""
    directory = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "model")
    tokens = dict.fromkeys(token for parser in TOOL_PARSERS.values() for token in parser.tokens.values())
    add_tokens(directory / "tokenizer.json", list(tokens))
    return directory


@pytest.fixture(scope="module")
def parser(model: Path) -> Callable[..., Parser]:
    def create(tool_parser: str | None = None, reasoning_parser: str | None = None, directory: Path = model) -> Parser:
        options = RendererOptions(tool_parser=tool_parser, reasoning_parser=reasoning_parser)
        return Parser(RendererAdapter.open(directory, "template", options))

    return create


@pytest.fixture(scope="module")
def model_with_spelled_marks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, but with `<think>` and `</think>` as several tokens."""
    directory = shutil.copytree(model, tmp_path_factory.mktemp("spelled") / "model")
    file = directory / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    for token in values["added_tokens"]:
        token["content"] = token["content"].replace("think>", "other>")
    file.write_text(json.dumps(values))
    assert len(Tokenizer.from_file(str(file)).encode("<think>").ids) > 1
    return directory


@pytest.fixture(params=["one token", "several tokens"])
def think(request: pytest.FixtureRequest, parser: Any, model: Path, model_with_spelled_marks: Path) -> Parser:
    """Parses reasoning and calls, with marks of reasoning that are one token, and that are several."""
    created: Parser = parser("qwen3", "think", model if request.param == "one token" else model_with_spelled_marks)
    return created


def test_all_parsers_of_calls_of_the_package_can_be_named() -> None:
    from renderers import parsers, parsing

    assert set(parsers.TOOL_PARSERS) <= set(TOOL_PARSERS)
    assert set(parsers.REASONING_PARSERS) == set(REASONING_PARSERS)
    for tool_parser in TOOL_PARSERS.values():
        assert hasattr(parsing, tool_parser.function)


def test_without_a_parser_everything_is_text(parser: Any) -> None:
    answer = f" <think>hm</think>{CALL}\n"
    assert parser()(f"{answer}<|im_end|>") == ParsedCompletion(answer, None, ())


def test_an_answer_of_text_has_neither_reasoning_nor_calls(think: Parser) -> None:
    assert think("It is red.<|im_end|>") == ParsedCompletion("It is red.", None, ())


def test_an_empty_answer_is_an_empty_text(think: Parser) -> None:
    assert think("") == think("<|im_end|>") == ParsedCompletion("", None, ())


def test_only_the_last_token_is_taken_for_the_end(think: Parser) -> None:
    assert think("a<|im_end|>b").text == "a<|im_end|>b"


def test_reasoning_that_the_answer_begins_is_found(think: Parser) -> None:
    assert think("<think>\nhm\n</think>\n\nred<|im_end|>") == ParsedCompletion("red", "hm", ())


@pytest.mark.parametrize("opening", [f"{OPENING}<think>\n", "[/INST]<think>"])
def test_reasoning_that_the_prompt_begins_is_found(think: Parser, opening: str) -> None:
    assert think("hm\n</think>\n\nred", opening) == ParsedCompletion("red", "hm", ())


def test_reasoning_that_the_prompt_has_ended_is_not_reasoning(think: Parser) -> None:
    assert think("red", f"{OPENING}<think>\n\n</think>\n\n") == ParsedCompletion("red", None, ())


def test_reasoning_without_an_end_has_no_text(think: Parser) -> None:
    assert think("<think>\nhm, red") == ParsedCompletion("", "\nhm, red", ())
    assert think("hm, red", f"{OPENING}<think>\n") == ParsedCompletion("", "hm, red", ())


def test_empty_reasoning_is_none(think: Parser) -> None:
    assert think("<think>\n\n</think>\n\nred") == ParsedCompletion("red", None, ())


def test_text_in_the_last_token_of_a_mark_is_kept(think: Parser) -> None:
    assert think("<think>hm</think>>>> red").text == ">>> red"


def test_reasoning_in_the_middle_of_a_text_is_text(think: Parser) -> None:
    assert think("red <think>hm</think>") == ParsedCompletion("red <think>hm</think>", None, ())


def test_a_call_in_reasoning_does_not_count(think: Parser) -> None:
    parsed = think(f"<think>{CALL}</think>red")
    assert (parsed.text, parsed.reasoning, parsed.tool_calls) == ("red", CALL, ())


def test_a_call_ends_reasoning_without_an_end(think: Parser) -> None:
    parsed = think(f"<think>\nhm\n{CALL}")
    assert (parsed.reasoning, [call.name for call in parsed.tool_calls]) == ("hm", ["add"])


def test_calls_after_a_text_are_found(think: Parser) -> None:
    parsed = think(f"<think>hm</think>\n\nI add.\n{CALL}\n{CALL.replace('1', '2')}<|im_end|>")
    assert (parsed.text, parsed.reasoning) == ("I add.", "hm")
    assert [(call.name, call.arguments, call.error) for call in parsed.tool_calls] == [
        ("add", {"a": 1}, None),
        ("add", {"a": 2}, None),
    ]


@pytest.mark.parametrize("before", ["", "<think>hm</think>", "<think>hm</think>\n\nI add."])
@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("<tool_call>{</tool_call>", "invalid_json"),
        ("<tool_call>{}</tool_call>", "missing_name"),
        ("<tool_call>[1]</tool_call>", "missing_name"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": {}}', "unclosed_block"),
    ],
)
def test_a_malformed_call_has_its_block_as_text(think: Parser, before: str, block: str, error: str) -> None:
    (call,) = think(before + block).tool_calls
    assert (call.error, call.malformed_text) == (error, block)


def test_a_text_that_only_looks_like_a_call_stays_text(think: Parser) -> None:
    tokenizer = think.adapter.tokenizer
    spelled = think(tokenizer.encode_as_text(CALL)["input_ids"])
    assert (spelled.text, spelled.tool_calls) == (CALL, ())


@pytest.mark.parametrize("name", TOOL_PARSERS)
@pytest.mark.parametrize("reasoning", ["think", None])
def test_each_parser_finds_a_call(parser: Any, name: str, reasoning: str | None) -> None:
    (call,) = parser(name, reasoning)(CALLS[name], tools=TOOLS if "say" in CALLS[name] else None).tool_calls
    expected = {"text": "hello"} if "say" in CALLS[name] else {"a": 1}
    assert (call.name, call.arguments, call.error) == (
        "get-sum" if name == "deepseek-v3" else "say" if "say" in CALLS[name] else "add",
        expected,
        None,
    )


@pytest.mark.parametrize("name", [name for name in TOOL_PARSERS if name != "llama-3"])
def test_text_before_a_call_has_nothing_of_the_call(parser: Any, name: str) -> None:
    parsed = parser(name, "think")(f"<think>hm</think>One.\n{CALLS[name]}", tools=TOOLS)
    assert (parsed.text, parsed.reasoning, len(parsed.tool_calls)) == ("One.", "hm", 1)


@pytest.mark.parametrize("name", [name for name in TOOL_PARSERS if name != "llama-3"])
def test_a_call_that_is_spelled_is_text_for_each_parser(parser: Any, name: str) -> None:
    parse = parser(name)
    parsed = parse(parse.adapter.tokenizer.encode_as_text(CALLS[name])["input_ids"])
    assert (parsed.text, parsed.tool_calls) == (CALLS[name], ())


def test_a_number_that_the_tool_declares_as_a_text_stays_a_text(parser: Any) -> None:
    (call,) = parser("qwen3.5")(XML_CALL.replace("hello", "12"), tools=TOOLS).tool_calls
    assert call.arguments == {"text": "12"}


@pytest.mark.parametrize("answer", ["a {b}", '{"a": 1}', f"Sure: {LLAMA_CALL}", "{"])
def test_json_that_is_no_call_stays_text_for_llama(parser: Any, answer: str) -> None:
    assert parser("llama-3")(answer) == ParsedCompletion(answer, None, ())


@pytest.mark.parametrize("name", [*TOOL_PARSERS, None])
@pytest.mark.parametrize("reasoning", [*REASONING_PARSERS, None])
def test_no_answer_makes_a_parser_fail(parser: Any, name: str | None, reasoning: str | None) -> None:
    parse = parser(name, reasoning)
    tokenizer = parse.adapter.tokenizer
    pieces = st.sampled_from([*sorted(tokenizer.control_ids), *parse.ids(CALLS.get(name or "", CALL))])

    @given(st.lists(pieces | st.integers(0, tokenizer.vocab_size - 1), max_size=30), st.lists(pieces, max_size=5))
    def check(answer: list[int], opening: list[int]) -> None:
        parsed = parse.adapter.parse(as_logical_ids(opening), as_logical_ids(answer), TOOLS)
        assert isinstance(parsed.text, str)

    check()


def test_deeply_nested_arguments_are_one_malformed_call(think: Parser) -> None:
    answer = f'<tool_call>{{"name": "add", "arguments": {"[" * 3000}</tool_call>'
    (call,) = think(answer).tool_calls
    assert call.error in ("unreadable", "invalid_json")


@pytest.mark.parametrize("family", BUILT_IN)
@pytest.mark.parametrize(
    "answer",
    [
        "It is red.",
        "  It is red.\n",
        "",
        "<think>\nhm\n</think>\n\nred",
        "<think>\n\n</think>\n\nred",
        "<think>\nhm, red",
        "red <think>hm</think>",
        "CALL",
        "One.\nCALL",
        "<think>\nhm\n</think>\n\nOne.\nCALL\nCALL",
        "<think>\nCALL\n</think>\n\nred",
        "<think>\nhm\nCALL",
        "CUT",
        "<think>hm</think>CUT",
    ],
)
def test_the_built_in_renderer_parses_the_same(adapter_for: Any, tmp_path: Path, family: str, answer: str) -> None:
    built_in = adapter_for(family)
    tool_parser, reasoning_parser = BUILT_IN[family]
    options = RendererOptions(tool_parser=tool_parser, reasoning_parser=reasoning_parser)
    ours = RendererAdapter.open(tmp_path, "template", options)
    call = CALLS[tool_parser]
    ids = built_in.tokenizer.encode(answer.replace("CALL", call).replace("CUT", call[: len(call) // 2]))
    # The built-in renderer of GLM-4.5 takes each answer for reasoning, as if its prompt began it.
    opening = as_logical_ids(built_in.tokenizer.encode("<think>" if family == "glm-4.5" else ""))
    theirs, found = (adapter.parse(opening, as_logical_ids(ids), TOOLS) for adapter in (built_in, ours))
    if (family, answer) in DIFFERENT:
        assert (found.reasoning, found.tool_calls) != (theirs.reasoning, theirs.tool_calls)
        return
    assert ((found.reasoning or "").strip(), found.tool_calls) == ((theirs.reasoning or "").strip(), theirs.tool_calls)
    assert found.text == theirs.text.strip()


@pytest.mark.parametrize("name", ["glm", "deepseek-v3"])
def test_a_parser_that_needs_a_token_that_the_tokenizer_lacks_is_refused(
    parser: Any, tiny_model: Path, name: str
) -> None:
    with pytest.raises(UnknownParser, match=rf"model\.tool_parser '{name}' needs the token '.*', which the tokenizer"):
        parser(name, None, tiny_model)


@pytest.mark.parametrize(
    ("tool_parser", "reasoning_parser", "message"),
    [
        ("qwen-3", None, r"model\.tool_parser 'qwen-3' is not known\. Did you mean 'qwen3'\? Use one of qwen3, "),
        ("hermes", None, r"model\.tool_parser 'hermes' is not known\. Use one of qwen3, "),
        (None, "thinking", r"model\.reasoning_parser 'thinking' is not known\. Did you mean 'think'\?"),
    ],
)
def test_an_unknown_parser_is_refused(
    parser: Any, tool_parser: str | None, reasoning_parser: str | None, message: str
) -> None:
    with pytest.raises(UnknownParser, match=message):
        parser(tool_parser, reasoning_parser)
