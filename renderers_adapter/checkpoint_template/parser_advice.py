"""Proposes the parsers that read what a chat template writes."""

from collections.abc import Mapping
from dataclasses import dataclass

from renderers_adapter.checkpoint_template.answer_parser import REASONING_BEGIN, TOOL_PARSERS
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.tokenizer import FastTokenizer

_REASONING_PARSER = "think"
_SIGNS_OF_CALLS: Mapping[str, str] = {
    "qwen3.5": "<function=",
    "glm": "<arg_key>",
    "minimax-m2": "<minimax:tool_call>",
    "kimi-k2": "<|tool_calls_section_begin|>",
    "deepseek-v3": "<｜tool▁calls▁begin｜>",
    "qwen3": "<tool_call>",
    "llama-3": '"parameters": ',
}
"""The text by which each tool parser is recognised in a template that writes calls. The first that fits is taken."""
_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class ParserAdvice:
    """The parsers that fit a chat template.

    Attributes:
        tool_parser: the name of the parser of tool calls; None if the template writes no calls that a parser reads.
        reasoning_parser: the name of the parser of reasoning; None if the template knows no reasoning.
    """

    tool_parser: str | None
    reasoning_parser: str | None


def advise_parsers(template: ChatTemplate, tokenizer: FastTokenizer) -> ParserAdvice:
    """Return the parsers that fit the text of a chat template and the tokens of its tokenizer."""
    text = "\n".join(template.sources)
    control_tokens = set(tokenizer.control_tokens)
    fitting = (
        name
        for name, sign in _SIGNS_OF_CALLS.items()
        if sign in text and control_tokens.issuperset(TOOL_PARSERS[name].tokens.values())
    )
    return ParserAdvice(
        next(fitting, None) if _CALLS in text else None, _REASONING_PARSER if REASONING_BEGIN in text else None
    )
