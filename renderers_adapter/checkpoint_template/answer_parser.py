"""Parses an answer with a tool parser and a reasoning parser that the configuration names.

The parsers are those of the `renderers` package. Without a parser, everything that the policy wrote is text.
"""

import difflib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.renderers_package import import_renderers
from renderers_adapter.special_text import MaskingTokenizer


@dataclass(frozen=True, slots=True)
class ToolParser:
    """How one function of the `renderers` package parses calls.

    Attributes:
        function: the name of the function in `renderers.parsing`.
        tokens: the tokens that it needs, by the names of its arguments for their ids. The first one begins the calls.
        arguments: its other arguments.
        takes_tools: whether it reads the types of arguments from the tools.
        ends_reasoning: whether a call ends reasoning that has no end, as in the built-in renderers of the format.
    """

    function: str
    tokens: Mapping[str, str]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    takes_tools: bool = False
    ends_reasoning: bool = False


_CALL_TOKENS = {"tool_call_id": "<tool_call>", "tool_call_end_id": "</tool_call>"}
_NO_THINKING = {"think_id": -1, "think_end_id": -1}
"""Ids that no token has, because the reasoning is parsed before the calls."""

TOOL_PARSERS: Mapping[str, ToolParser] = MappingProxyType(
    {
        "qwen3": ToolParser("parse_qwen3", _CALL_TOKENS, ends_reasoning=True),
        "qwen3.5": ToolParser("parse_qwen35", _CALL_TOKENS, _NO_THINKING, takes_tools=True, ends_reasoning=True),
        "glm": ToolParser(
            "parse_glm",
            {
                **_CALL_TOKENS,
                "arg_key_id": "<arg_key>",
                "arg_key_end_id": "</arg_key>",
                "arg_value_id": "<arg_value>",
                "arg_value_end_id": "</arg_value>",
            },
            {**_NO_THINKING, "thinking_enabled": False},
            takes_tools=True,
            ends_reasoning=True,
        ),
        "deepseek-v3": ToolParser(
            "parse_deepseek_v3",
            {
                "tool_calls_begin_id": "<｜tool▁calls▁begin｜>",
                "tool_calls_end_id": "<｜tool▁calls▁end｜>",
                "tool_call_begin_id": "<｜tool▁call▁begin｜>",
                "tool_call_end_id": "<｜tool▁call▁end｜>",
                "tool_sep_id": "<｜tool▁sep｜>",
            },
        ),
        "kimi-k2": ToolParser(
            "parse_kimi_k2",
            {
                "tool_calls_section_begin_id": "<|tool_calls_section_begin|>",
                "tool_calls_section_end_id": "<|tool_calls_section_end|>",
                "tool_call_begin_id": "<|tool_call_begin|>",
                "tool_call_argument_begin_id": "<|tool_call_argument_begin|>",
                "tool_call_end_id": "<|tool_call_end|>",
            },
            ends_reasoning=True,
        ),
        "minimax-m2": ToolParser(
            "parse_minimax",
            {"tool_call_id": "<minimax:tool_call>", "tool_call_end_id": "</minimax:tool_call>"},
            _NO_THINKING,
            takes_tools=True,
            ends_reasoning=True,
        ),
        "llama-3": ToolParser("parse_llama_3", {}),
    }
)
"""The parsers of tool calls by their names."""
REASONING_PARSERS = ("think",)
"""The names of reasoning parsers."""
REASONING_BEGIN, _REASONING_END = "<think>", "</think>"
_MAX_OPENING_TOKENS = 16


class UnknownParser(AdapterError):
    """The configuration names a parser that does not exist, or that does not fit the tokenizer."""


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The parts of an answer, as renderers of the `renderers` package return them.

    Attributes:
        content: the text without reasoning and calls.
        reasoning_content: the reasoning; None if there is none.
        tool_calls: the calls.
    """

    content: str
    reasoning_content: str | None
    tool_calls: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Reasoning:
    """The reasoning at the beginning of an answer.

    Attributes:
        text: the reasoning; None if there is none.
        end: the number of its tokens, with its marks; None if it is not finished.
        text_after: the text after the last mark that is in the same token as the end of this mark.
    """

    text: str | None
    end: int | None
    text_after: str = ""


_NO_REASONING = _Reasoning(None, 0)


class AnswerParser:
    """Divides the tokens of an answer into reasoning, text and calls.

    With a parser, white space around the text is removed, as most renderers of the package do.

    Raises:
        UnknownParser: a parser has an unknown name, or needs a token that the tokenizer does not have.
    """

    def __init__(
        self,
        tokenizer: MaskingTokenizer,
        end_ids: Sequence[int],
        tool_parser: str | None,
        reasoning_parser: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = set(end_ids)
        self._tool_parser = None if tool_parser is None else _find_tool_parser(tool_parser)
        if reasoning_parser is not None:
            _require_known("model.reasoning_parser", reasoning_parser, REASONING_PARSERS)
        self._parses_reasoning = reasoning_parser is not None
        self._call_ids: dict[str, int] = {}
        for argument, token in self._tool_parser.tokens.items() if self._tool_parser else ():
            if (token_id := _find_token(tokenizer, token)) is None:
                raise UnknownParser(
                    f"model.tool_parser {tool_parser!r} needs the token {token!r}, which the tokenizer "
                    f"{tokenizer.name_or_path} does not have. Choose another parser, or remove model.tool_parser."
                )
            self._call_ids[argument] = token_id
        self._first_call_id = next(iter(self._call_ids.values()), None)

    def parse(
        self, token_ids: Sequence[int], prompt_ids: Sequence[int], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ParsedAnswer:
        """Return the parts of an answer.

        Args:
            token_ids: the tokens of the answer.
            prompt_ids: the tokens before it, which may begin its reasoning.
            tools: the tools of the conversation, which give the types of arguments in formats that do not quote texts.
        """
        ids = list(token_ids)
        if ids and ids[-1] in self._end_ids:
            ids.pop()
        if self._tool_parser is None and not self._parses_reasoning:
            return ParsedAnswer(self._decode(ids), None, ())
        reasoning = self._parse_reasoning(ids, prompt_ids) if self._parses_reasoning else _NO_REASONING
        if reasoning.end is None:
            return ParsedAnswer("", reasoning.text, ())
        after = ids[reasoning.end :]
        calls = self._parse_calls(self._tool_parser, after, tools) if self._tool_parser else ()
        content = reasoning.text_after + self._decode(after[: self._begin_of_calls(after, calls)])
        for call in calls:
            if call.token_span is not None:
                call.token_span = tuple(at + reasoning.end for at in call.token_span)
        return ParsedAnswer(content.strip(), reasoning.text, calls)

    def _parse_calls(
        self, parser: ToolParser, ids: list[int], tools: Sequence[Mapping[str, Any]] | None
    ) -> Sequence[Any]:
        function = getattr(import_renderers("renderers.parsing"), parser.function)
        arguments = {**parser.arguments, **({"tools": tools} if parser.takes_tools else {})}
        calls: Sequence[Any] = function(self._tokenizer, ids, stop_ids=set(), **self._call_ids, **arguments).tool_calls
        return calls

    def _begin_of_calls(self, ids: Sequence[int], calls: Sequence[Any]) -> int:
        """Return the position at which the calls begin, with the token that begins a list of calls."""
        if not calls:
            return len(ids)
        first: int = calls[0].token_span[0]
        return next((at for at in range(first, -1, -1) if ids[at] == self._first_call_id), first)

    def _parse_reasoning(self, ids: list[int], prompt_ids: Sequence[int]) -> _Reasoning:
        call_id = self._first_call_id if self._tool_parser and self._tool_parser.ends_reasoning else None
        found = import_renderers("renderers.reasoning").scan_reasoning(
            self._tokenizer,
            ids,
            prefilled=self._decode(prompt_ids[-_MAX_OPENING_TOKENS:]).rstrip().endswith(REASONING_BEGIN),
            assistant_prefix="",
            tool_start_id=call_id,
            tool_start_closes_reasoning=call_id is not None,
        )
        if found.text is None:
            return _NO_REASONING
        if found.is_open:
            return _Reasoning(found.text, None)
        text = found.text.strip() or None
        if found.closed_by_tool and call_id is not None:
            return _Reasoning(text, ids.index(call_id))
        begin_id, end_id = (_find_token(self._tokenizer, mark) for mark in (REASONING_BEGIN, _REASONING_END))
        if begin_id is not None and end_id is not None:
            return _Reasoning(text, ids.index(end_id) + 1)
        # A mark is several tokens, so the reasoning ends with the shortest beginning whose text contains the mark.
        end = bisect_left(range(len(ids)), True, key=lambda at: _REASONING_END in self._decode(ids[:at]))
        return _Reasoning(text, end, self._decode(ids[:end]).partition(_REASONING_END)[2])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids)) if len(ids) else ""


def _find_tool_parser(name: str) -> ToolParser:
    _require_known("model.tool_parser", name, tuple(TOOL_PARSERS))
    return TOOL_PARSERS[name]


def _find_token(tokenizer: MaskingTokenizer, token: str) -> int | None:
    found: int | None = tokenizer.convert_tokens_to_ids(token)
    return None if found == tokenizer.unk_token_id else found


def _require_known(setting: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UnknownParser(f"{setting} {name!r} is not known.{hint} Use one of {', '.join(known)}, or remove it.")
