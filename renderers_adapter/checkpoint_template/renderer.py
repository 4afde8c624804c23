"""Renders, bridges and parses conversations with a checkpoint's own chat template.

A `TemplateRenderer` has the methods of a renderer of the `renderers` package, so `RendererAdapter` can use either. Only
`bridge` differs: a template can look at a whole conversation, so the bridge needs all of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.checkpoint_template.answer_parser import AnswerParser
from renderers_adapter.checkpoint_template.bridge import find_tail, mark_answer_and_messages
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, format_now
from renderers_adapter.checkpoint_template.control_token_check import Checked, ControlTokenCheck
from renderers_adapter.checkpoint_template.end_tokens import find_end_tokens
from renderers_adapter.checkpoint_template.message_marks import (
    Spans,
    find_spans,
    locate_messages,
    message_boundaries,
    without_marks,
)
from renderers_adapter.checkpoint_template.text_memory import Clock, TextMemory
from renderers_adapter.errors import AdapterError
from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT, RendererOptions, SpecialText
from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.special_text import MaskingTokenizer, SpecialTextRefused

_REASONING_TOKENS = ("<think>", "</think>")
"""Many templates write an empty block of reasoning for an answer without reasoning."""

_MAX_REASON = 500
"""The maximum number of characters of a template's error in ours."""

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TokensByMessage:
    """Tokens, and for each the message that it belongs to, as renderers of the `renderers` package return them.

    Attributes:
        token_ids: the tokens.
        message_indices: for each token the index of its message; -1 for tokens of the generation prompt.
        is_content: for each token whether it is a part of its message's content.
        sampled_mask: empty, because a template does not say what a policy samples.
    """

    token_ids: list[int]
    message_indices: list[int]
    is_content: list[bool]
    sampled_mask: tuple[()] = ()


class TemplateRenderer:
    """Renders conversations with a chat template. It is not thread-safe, because its tokenizer has state."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: MaskingTokenizer,
        arguments: Mapping[str, Any],
        end_tokens: Mapping[int, str],
        parser: AnswerParser,
        memory: TextMemory,
        special_text: SpecialText = SpecialText.TEXT,
    ) -> None:
        self._template = template
        self._check = None if special_text is SpecialText.ALLOW else ControlTokenCheck(tokenizer)
        self._memory = memory
        self._tokenizer = tokenizer
        self._arguments = dict(arguments)
        self._end_ids = list(end_tokens)
        end_texts = sorted(filter(None, end_tokens.values()), key=len, reverse=True)
        self._end_pattern = re.compile("|".join(map(re.escape, end_texts)) or "(?!)")
        self._reasoning_ids = {tokenizer.convert_tokens_to_ids(token) for token in _REASONING_TOKENS}
        self._parser = parser

    def get_stop_token_ids(self) -> list[int]:
        """Return the ids of the tokens that end an answer."""
        return self._end_ids

    def render(self, messages: Messages, *, tools: Messages | None, add_generation_prompt: bool) -> TokensByMessage:
        """Return the tokens of a whole conversation.

        Raises:
            UnsupportedConversation: the template refuses the conversation, or has an error.
            SpecialTextRefused: the template makes a control token of the text of a message.
            TooManyTokens: the text is too long for every model.
        """
        given = [self._template.for_template(message, tools) for message in messages]
        clock = Clock()
        text = self._text(given, tools, clock, add_generation_prompt=add_generation_prompt)
        is_changed = self._template.changed_a_text
        if add_generation_prompt:
            self._memory.add(messages, tools, text, clock)
        spans = locate_messages(
            given, text, lambda marked: self._text(marked, tools, add_generation_prompt=add_generation_prompt)
        )
        checked = self._encode(text, spans, given, tools, is_changed, add_generation_prompt=add_generation_prompt)
        return self._by_message(checked, [message["role"] for message in messages], spans)

    def find_prompt(self, messages: Messages, tools: Messages | None) -> str | None:
        """Return the text of a prompt that was rendered lately without marks for control tokens; None if there is none.

        The messages and tools are those of the rollout, so a text that is found also says that they need no marks.
        """
        return self._memory.find(messages, tools)

    def bridge(
        self,
        conversation: Messages,
        completion: Sequence[int],
        messages: Messages,
        tools: Messages | None,
        prompt: str | None,
    ) -> TokensByMessage:
        """Return only the tokens that new messages add after a completion.

        Args:
            conversation: the messages before the new ones; the last one is the answer that was sampled.
            completion: the tokens of the answer.
            messages: the new messages.
            tools: the tools of the conversation.
            prompt: the text of the messages before the answer, if `find_prompt` knows it.

        Raises:
            BridgeRefused: the whole conversation must be rendered; `reason` says why.
        """
        try:
            *history, answer = (self._template.for_template(message, tools) for message in conversation)
            added = [self._template.for_template(message, tools) for message in messages]
            prompt = self._text(history, tools) if prompt is None else prompt
            clock = Clock()
            whole = self._text([*history, answer, *added], tools, clock)
            is_changed = self._template.changed_a_text
            marked = self._text([*history, *mark_answer_and_messages(answer, added)], tools)
        except Exception as error:  # a template may raise any error; the render of the whole conversation names it
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED) from error
        self._memory.add([*conversation, *messages], tools, whole, clock)
        is_cut = not completion or completion[-1] not in self._end_ids
        tail = find_tail(prompt, whole, marked, answer, self._end_pattern, is_cut=is_cut)
        if not self._control_tokens(tail.opening) <= set(completion) | self._reasoning_ids:
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)  # such as a header that the prompt does not have
        spans = find_spans(tail.marked_text, first_index=1)
        begin = len(whole) - len(without_marks(tail.marked_text))
        try:
            checked = self._encode(whole, spans, [answer, *added], tools, is_changed, begin=begin, history=history)
        except SpecialTextRefused:  # the render of the whole conversation names the message
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED) from None
        tokens = self._by_message(checked, [message["role"] for message in messages], spans, 1)
        if tokens.token_ids[0] not in self._end_ids:
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
        if is_cut:
            if answer.get("reasoning_content") and not answer["content"]:
                raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)  # it was cut within its reasoning
            return tokens
        if tokens.token_ids[0] != completion[-1]:
            raise BridgeRefused(BridgeRefusalReason.END_TOKEN)
        return TokensByMessage(tokens.token_ids[1:], tokens.message_indices[1:], tokens.is_content[1:])

    def parse_response(
        self, token_ids: Sequence[int], *, tools: Messages | None = None, prompt_ids: Sequence[int]
    ) -> Any:
        """Parse a completion with the parsers of the configuration."""
        return self._parser.parse(token_ids, prompt_ids, tools)

    def _control_tokens(self, text: str) -> set[int]:
        control_ids: frozenset[int] = self._tokenizer.control_ids
        return set(control_ids.intersection(self._tokenizer.encode(text)))

    def _text(
        self,
        messages: Messages,
        tools: Messages | None,
        clock: Clock | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        try:
            return self._template.render(
                messages,
                tools,
                self._arguments,
                add_generation_prompt=add_generation_prompt,
                strftime_now=format_now if clock is None else clock.format_now,
            )
        except AdapterError:
            raise
        except Exception as error:  # noqa: BLE001 - a template may raise any error, whose traceback helps nobody
            kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
            reason = " ".join(self._tokenizer.restore(str(error)).split())[:_MAX_REASON].removesuffix(".")
            raise UnsupportedConversation(
                f"{self._template.origin} refuses this conversation: {kind}{reason}. Change the messages, or correct "
                "the template."
            ) from None

    def _encode(
        self,
        text: str,
        spans: Spans,
        messages: Messages,
        tools: Messages | None,
        is_changed: bool,
        *,
        add_generation_prompt: bool = True,
        begin: int = 0,
        history: Messages = (),
    ) -> Checked:
        """Encode a rendered text from `begin` on. Spans number the messages without the history."""
        if self._check is None:
            return Checked(text[begin:], self._tokenizer(text[begin:], return_offsets_mapping=True))
        return self._check.require_own_tokens(
            text,
            spans,
            messages,
            tools,
            lambda marked, marked_tools: self._text(marked, marked_tools, add_generation_prompt=add_generation_prompt),
            is_changed=is_changed,
            begin=begin,
            history=history,
        )

    def _by_message(
        self, checked: Checked, roles: Sequence[str], spans: Spans, first_index: int = 0
    ) -> TokensByMessage:
        encoded = checked.encoded
        offsets = encoded["offset_mapping"]
        ends = message_boundaries(checked.text, roles, spans, self._end_pattern, first_index)
        indices: list[int] = []
        for index, end in enumerate(ends):
            at = len(indices)
            while at < len(offsets) and offsets[at][0] < end:
                at += 1
            indices += [index] * (at - len(indices))
        indices += [-1] * (len(offsets) - len(indices))
        is_content = [False] * len(offsets)
        contents = [span.content for span in spans.values() if span.content is not None]
        at = 0
        for begin, end in contents:
            while at < len(offsets) and offsets[at][0] < begin:
                at += 1
            while at < len(offsets) and offsets[at][0] < end:
                is_content[at] = True
                at += 1
        return TokensByMessage(encoded["input_ids"], indices, is_content)


def load_template(directory: Path, options: RendererOptions) -> ChatTemplate:
    """Load the chat template that the options name, or the one of the checkpoint.

    Raises:
        ChatTemplateError: there is no template, or it cannot be read.
    """
    file = options.template.get(TEMPLATE_FILE_ARGUMENT)
    return ChatTemplate.load(directory, None if file is None else Path(str(file)))


def template_renderer_factory(
    directory: Path, options: RendererOptions
) -> Callable[[MaskingTokenizer], TemplateRenderer]:
    """Load the chat template of a checkpoint; return a function that creates its renderer for a tokenizer.

    Raises:
        ChatTemplateError: the checkpoint has no template that can be used, or names no token that ends an answer.
    """
    template = load_template(directory, options)
    arguments = options.template_arguments
    template.check_arguments(arguments)
    memory = TextMemory()

    def create(tokenizer: MaskingTokenizer) -> TemplateRenderer:
        end_tokens = find_end_tokens(directory, template, arguments, tokenizer)
        parser = AnswerParser(tokenizer, list(end_tokens), options.tool_parser, options.reasoning_parser)
        return TemplateRenderer(template, tokenizer, arguments, end_tokens, parser, memory, options.special_text)

    return create
