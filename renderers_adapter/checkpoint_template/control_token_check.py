"""Makes sure that no text of a message becomes a control token, also if the chat template changes the text.

The marks of `MaskingTokenizer.mask` are at control tokens that a message spells. They hold while a template only
copies, joins and trims texts. They do not hold if it changes a text, or writes a text into the middle of a control
token. Then the conversation is rendered again with marks at all signs of control tokens in its messages, such as `<`:

- If the template writes the same text, each sign in a control token is known to be the template's or a message's.
  Control tokens of messages are then encoded as text.
- If it writes another text, the control tokens must be the same.

Otherwise `SpecialTextRefused` names the message.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.checkpoint_template.message_marks import Spans
from renderers_adapter.special_text import CHOOSING_KEYS, MaskingTokenizer, SpecialTextRefused
from renderers_adapter.tokenizer import EncodedText

_MAX_WHITE_SPACE = 16
"""Longer white space around a part of a control token is not looked at."""

Messages = Sequence[Mapping[str, Any]]
Renders = Callable[[Messages, Messages | None], str]
"""Renders messages and tools to text."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A text whose control tokens are all the template's.

    Attributes:
        text: the text, with marks.
        encoded: its tokens.
    """

    text: str
    encoded: EncodedText


class ControlTokenCheck:
    """Checks the control tokens of rendered texts."""

    def __init__(self, tokenizer: MaskingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text_of = dict(zip(sorted(tokenizer.control_ids), tokenizer.control_tokens, strict=True))

    def require_own_tokens(
        self,
        text: str,
        spans: Spans,
        messages: Messages,
        tools: Messages | None,
        render: Renders,
        *,
        is_changed: bool,
        begin: int = 0,
        history: Messages = (),
    ) -> Checked:
        """Return the tokens of a rendered text, or of its end from `begin` on, with no control token of a message.

        Args:
            text: the rendered text, with the marks of `MaskingTokenizer.mask`.
            spans: the spans of messages, in the text from `begin` on.
            messages: the messages from which the text was rendered, after the history.
            tools: the tools of the conversation.
            render: renders them again.
            is_changed: whether the template changed a text.
            begin: where the text begins that is encoded.
            history: the messages whose texts were checked before.

        Raises:
            SpecialTextRefused: the text of a message would become a control token.
        """
        encoded = self._tokenizer(text[begin:], return_offsets_mapping=True)
        tokens = self._tokenizer.control_tokens_of(encoded)
        owner = _owner(tokens, spans)
        words = self._words_inside(tokens, messages)
        if not is_changed and owner is None and not words:
            return Checked(text[begin:], encoded)
        restored = self._tokenizer.restore(text)
        whole = [*history, *messages]
        marked = self._render_marked(whole, tools, words, render)
        if len(marked) == len(text) and self._tokenizer.restore(marked) == restored:
            encoded = self._tokenizer(marked[begin:], return_offsets_mapping=True)
            owner = _owner(self._tokenizer.control_tokens_of(encoded), spans)
            if owner is None or _has_several_parts(messages[owner]):
                return Checked(marked[begin:], encoded)
        elif owner is None and self._tokenizer.template_tokens(marked) == self._tokenizer.template_tokens(text):
            return Checked(text[begin:], encoded)
        if owner is None:
            owner = self._find_owner(text, whole, tools, words, render)
        raise SpecialTextRefused(
            f"the chat template makes a control token of the text of {_name(whole, owner)}. Change this text, "
            "correct the template, or set model.special_text: allow, which accepts such tokens."
        )

    def _render_marked(
        self, messages: Messages, tools: Messages | None, words: Collection[str], render: Renders
    ) -> str:
        """Render messages with marks at all signs of control tokens; return an empty text if this is refused."""
        marked_messages, marked_tools = self._tokenizer.mask_signs((messages, tools), words)
        try:
            return render(marked_messages, marked_tools)
        except Exception:  # noqa: BLE001 - a template may raise any error, such as for the characters of marks
            return ""

    def _find_owner(
        self,
        text: str,
        messages: Messages,
        tools: Messages | None,
        words: Collection[str],
        render: Renders,
    ) -> int | None:
        """Return the message without whose signs the template writes other control tokens; None if none alone."""
        template_tokens = self._tokenizer.template_tokens(text)
        for index, message in enumerate(messages):
            marked = self._tokenizer.mask_signs(message, words)
            try:
                marked_text = render([*messages[:index], marked, *messages[index + 1 :]], tools)
            except Exception:  # noqa: BLE001, S112 - a template may raise any error
                continue
            if self._tokenizer.template_tokens(marked_text) != template_tokens:
                return index
        return None

    def _words_inside(self, tokens: Sequence[tuple[int, int, int]], messages: Messages) -> set[str]:
        """Return the texts of messages that are a part of one of these control tokens."""
        control_tokens = {self._text_of[token] for token, _, _ in tokens}
        written = "\0".join(control_tokens)
        longest = max(map(len, control_tokens), default=0) + _MAX_WHITE_SPACE
        words = {text.strip() for text in _texts(messages) if len(text) <= longest}
        return {word for word in words - control_tokens if word and word in written}


def _owner(tokens: Sequence[tuple[int, int, int]], spans: Spans) -> int | None:
    """Return the first message whose content has a character in a control token; None if there is none."""
    at = 0
    for index, span in spans.items():
        if span.content is None:
            continue
        begin, end = span.content
        while at < len(tokens) and tokens[at][2] <= begin:
            at += 1
        if begin < end and at < len(tokens) and tokens[at][1] < end:
            return index
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of messages, but not their roles and types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in CHOOSING_KEYS:
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _has_several_parts(message: Mapping[str, Any]) -> bool:
    """Whether a template may write control tokens of its own within the content."""
    content = message["content"]
    return not isinstance(content, str) and len(content) > 1


def _name(messages: Messages, index: int | None) -> str:
    return "several messages" if index is None else f"the {messages[index]['role']} message {index}"
