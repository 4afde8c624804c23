"""Parses an answer with a tool parser and a reasoning parser that the configuration names.

The parsers are those of the `renderers` package. Without a parser, everything that the policy wrote is text.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.special_text import MaskingTokenizer

TOOL_PARSERS: Mapping[str, str] = {
    "qwen3": "<tool_call>",
    "qwen3.5": "<tool_call>",
    "glm": "<tool_call>",
    "deepseek-v3": "<｜tool▁calls▁begin｜>",
    "llama-3": "",
}
"""The names of tool parsers, each with the token that it needs; empty if it needs none."""
REASONING_PARSERS = ("think",)
"""The names of reasoning parsers."""
_LLAMA_3 = "llama-3"
_REASONING_END = "</think>"


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


class AnswerParser:
    """Divides the tokens of an answer into reasoning, text and calls."""

    def __init__(
        self,
        tokenizer: MaskingTokenizer,
        end_ids: Sequence[int],
        tool_parser: str | None,
        reasoning_parser: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = set(end_ids)
        self._parses_reasoning = reasoning_parser is not None
        self._is_llama = tool_parser == _LLAMA_3
        self._tool_parser: Any = None
        _check_parsers(tokenizer, tool_parser, reasoning_parser)
        if tool_parser is not None and not self._is_llama:
            from renderers.parsers import get_tool_parser

            self._tool_parser = get_tool_parser(tool_parser, tokenizer)

    def parse(self, token_ids: Sequence[int], prompt_ids: Sequence[int]) -> ParsedAnswer:
        """Return the parts of an answer. `prompt_ids` are the tokens before it, which may begin its reasoning."""
        ids = list(token_ids)
        if ids and ids[-1] in self._end_ids:
            ids.pop()
        reasoning, begin = self._parse_reasoning(ids, list(prompt_ids)) if self._parses_reasoning else (None, 0)
        if begin is None:
            return ParsedAnswer("", reasoning, ())
        if self._is_llama:
            return self._parse_llama(ids, begin, reasoning)
        content_ids, calls = ids[begin:], []
        if self._tool_parser is not None:
            content_ids, calls = self._tool_parser.extract(content_ids)
        for call in calls:
            if call.token_span is not None:
                call.token_span = tuple(at + begin for at in call.token_span)
        content = self._decode(content_ids)
        if reasoning is not None:
            content = content.lstrip("\n")
        return ParsedAnswer(content.rstrip() if calls else content, reasoning, calls)

    def _parse_reasoning(self, ids: list[int], prompt_ids: list[int]) -> tuple[str | None, int | None]:
        """Return the reasoning and the position after it; None as the position if the reasoning is not finished."""
        from renderers.reasoning import prompt_ends_in_reasoning, scan_reasoning

        prefilled = prompt_ends_in_reasoning(self._tokenizer, prompt_ids, stop_ids=self._end_ids)
        found = scan_reasoning(self._tokenizer, ids, prefilled=prefilled)
        if found.text is None:
            return None, 0
        text = found.text.strip("\n")
        return (text, None) if found.is_open else (text or None, self._end_of_reasoning(ids))

    def _end_of_reasoning(self, ids: list[int]) -> int:
        end_id = self._tokenizer.convert_tokens_to_ids(_REASONING_END)
        if end_id in ids:
            return ids.index(end_id) + 1
        # The marker is several tokens, so the reasoning ends with the shortest beginning whose text contains it.
        return bisect_left(range(len(ids)), True, key=lambda at: _REASONING_END in self._decode(ids[:at]))

    def _parse_llama(self, ids: list[int], begin: int, reasoning: str | None) -> ParsedAnswer:
        from renderers.parsing import parse_llama_3

        parsed = parse_llama_3(self._tokenizer, ids[begin:], stop_ids=self._end_ids)
        for call in parsed.tool_calls:
            call.token_span = tuple(at + begin for at in call.token_span)
        return ParsedAnswer(parsed.content, reasoning, parsed.tool_calls)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids)) if ids else ""


def _check_parsers(tokenizer: MaskingTokenizer, tool_parser: str | None, reasoning_parser: str | None) -> None:
    if tool_parser is not None:
        _require_known("model.tool_parser", tool_parser, TOOL_PARSERS)
        token = TOOL_PARSERS[tool_parser]
        if token and tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise UnknownParser(
                f"model.tool_parser {tool_parser!r} needs the token {token!r}, which the tokenizer "
                f"{tokenizer.name_or_path} does not have. Choose another parser, or remove model.tool_parser."
            )
    if reasoning_parser is not None:
        _require_known("model.reasoning_parser", reasoning_parser, REASONING_PARSERS)


def _require_known(setting: str, name: str, known: Sequence[str] | Mapping[str, str]) -> None:
    if name not in known:
        raise UnknownParser(f"{setting} {name!r} is not known. Use one of {', '.join(known)}, or remove {setting}.")
