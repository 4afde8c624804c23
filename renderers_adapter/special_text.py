"""Encodes control tokens in the text of messages as text, so that only the template writes control tokens.

    masked_messages, masked_tools = masking_tokenizer.mask((messages, tools))
    renderer.render(masked_messages, tools=masked_tools)     # the renderer uses this tokenizer

A renderer joins the text of its template with the text of messages, and a tokenizer cannot distinguish them. So before
rendering, `mask` replaces one character of each control token in a message by a *mark*. A mark is a lone surrogate,
which no valid text contains. The renderer's tokenizer finds the marks, and encodes the original characters there as
text. A part of a control token at the start or end of a text, such as `<|im_`, also gets a mark. The neighbouring text
may complete such a token. If no control token results, the ids are the same as without marks.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from renderers_adapter.rendered import UnsupportedConversation
from renderers_adapter.tokenizer import EncodedText, FastTokenizer

_T = TypeVar("_T")

_SURROGATES = range(0xD800, 0xE000)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FILLER = "\ufffd"
_ESCAPE_SURPLUS = len(r"\ud800") - 1
"""The number of additional characters of a mark that a template writes as a JSON escape."""
_QUOTED_CHARACTERS = 80
_KNOWN_KEYS = frozenset(
    (
        *("role", "content", "type", "text", "image", "hash", "name", "reasoning_content", "tool_calls"),
        *("tool_call_id", "id", "function", "arguments", "description", "parameters", "strict", "properties"),
        *("required", "items", "enum", "const", "default", "title", "anyOf", "oneOf", "allOf", "$defs", "$ref"),
        "additionalProperties",
    )
)
"""The keys of messages, tools and JSON schemas that renderers look up. They must not get marks."""


CHOOSING_KEYS = frozenset(("role", "type"))
"""The keys by whose values templates choose what they write."""
_QUOTES, _SIGNS_IN_WORDS = frozenset("\"'\\"), frozenset("_-/.:")


class SpecialTextRefused(UnsupportedConversation):
    """The text of a message or a tool contains a control token, and the configuration does not allow this."""


class ControlTokenFinder:
    """Finds control tokens in a text, and parts of control tokens at its start and end."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._mark_at = {token: _first_mark(token) for token in longest_first}
        pairs = [(token[:at], token[at:]) for token in longest_first for at in range(1, len(token))]
        self._beginnings = {part for part, _ in pairs if not part.isalnum()}
        self._endings = {part for _, part in pairs if not part.isalnum()}
        self._longest_part = max(map(len, longest_first), default=1) - 1
        characters = {c for token in longest_first for c in (token[_first_mark(token)], token[_last_mark(token)])}
        self._any_mark = re.compile("|".join(map(re.escape, characters))) if characters else None
        self._tag_names = {token.strip("</>") for token in longest_first if token[0] == "<" and token[-1] == ">"}

    @cached_property
    def signs(self) -> re.Pattern[str]:
        """Finds the signs by which control tokens differ from words, such as `<` and `|`. Each token has one."""
        signs: set[str] = set()
        for token in self._mark_at:
            own = {sign for sign in token if not sign.isalnum() and not sign.isspace() and sign not in _QUOTES}
            signs |= own - _SIGNS_IN_WORDS or own
        return re.compile(f"[{re.escape(''.join(sorted(signs)))}]" if signs else "(?!)")

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the position and the text of every control token in a text, including overlapping ones."""
        if self._pattern is None:
            return
        found = self._pattern.search(text)
        while found is not None:
            yield found.start(), found.group()
            found = self._pattern.search(text, found.start() + 1)

    def find_marks(self, text: str) -> set[int]:
        """Return the positions for marks: one in each control token, or part of one at the start or end of the text."""
        marks: set[int] = set()
        if self._any_mark is None or not self._any_mark.search(text):
            return marks
        marks |= {start + self._mark_at[token] for start, token in self.find(text)}
        marks |= self._find_edge_marks(text, 0, len(text))
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if begin < end and (begin, end) != (0, len(text)):  # many templates remove this white space
            marks |= self._find_edge_marks(text, begin, end)
        return marks

    def _find_edge_marks(self, text: str, begin: int, end: int) -> set[int]:
        marks: set[int] = set()
        for length in range(1, min(end - begin, self._longest_part) + 1):
            if (last := text[end - length : end]) in self._beginnings:
                marks.add(end - length + _first_mark(last))
            if (first := text[begin : begin + length]) in self._endings:
                marks.add(begin + _last_mark(first))
        return marks

    def find_key_marks(self, key: str) -> set[int]:
        """Return the positions for marks in a key. Some templates write an unknown key of a tool as `<key>`."""
        return {0} if key in self._tag_names and key not in _KNOWN_KEYS else self.find_marks(key)


@lru_cache(maxsize=8)
def _finder_of(tokens: tuple[str, ...]) -> ControlTokenFinder:
    return ControlTokenFinder(tokens)


class MaskingTokenizer:
    """The tokenizer of one renderer. It encodes the text that `mask` marked as plain text. It is not thread-safe."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._finder = _finder_of(tokenizer.control_tokens)
        self._originals: dict[str, str] = {}
        self._marks: re.Pattern[str] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def refuse(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raise SpecialTextRefused if a tool, or a message that is not from the assistant, contains a control token."""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                self._refuse_texts(f"the {message['role']} message {index}", message)
        for index, tool in enumerate(tools or ()):
            self._refuse_texts(f"the tool {index}", tool)

    def _refuse_texts(self, owner: str, value: Any) -> None:
        for text, _ in _texts(value):
            for start, token in self._finder.find(text):
                begin = max(0, start - _QUOTED_CHARACTERS // 2)
                raise SpecialTextRefused(
                    f"{owner} contains the control token {token!r} at character {start} of its text "
                    f"{text[begin : begin + _QUOTED_CHARACTERS]!r}. Replace it, or set "
                    "model.special_text: text, which encodes it as text."
                )

    def needs_marks(self, value: Any) -> bool:
        """Whether `mask` would mark a text. The marks of the last call of `mask` are not valid afterwards."""
        self._originals, self._marks = {}, None
        return any(self._find_marks(text, is_key) for text, is_key in _texts(value))

    def mask(self, value: _T) -> _T:
        """Return the messages and tools with marks in their texts. The marks are valid until the next call."""
        return self._mark(value, self._find_marks, {}) if self.needs_marks(value) else value

    def mask_signs(self, value: _T, words: Collection[str] = ()) -> _T:
        """Return messages and tools of `mask` with marks at all signs of control tokens, too, and at the texts `words`.

        So a character of a control token can be followed through a template that changes texts. Quotes get no marks,
        because templates write them as escapes. Roles and types get none, because templates choose by them.
        """
        surrogate_of = {character: mark for mark, character in self._originals.items() if len(mark) == 1}

        def find(text: str, is_key: bool) -> set[int]:
            if is_key and text in _KNOWN_KEYS:
                return set()
            marks = {found.start() for found in self._finder.signs.finditer(text)}
            word = text.strip()
            if not is_key and word in words:
                marks.add(text.index(word))
            return marks

        return self._mark(value, find, surrogate_of, CHOOSING_KEYS)

    def _mark(
        self,
        value: _T,
        find_marks: Callable[[str, bool], set[int]],
        surrogate_of: dict[str, str],
        kept_keys: Collection[str] = (),
    ) -> _T:
        """Return messages and tools with marks. `surrogate_of` has the marks that they contain already."""
        known = set(surrogate_of.values())
        taken = {text[at : at + 6].lower() for text, _ in _texts(value) for at in _positions(text, "\\ud")}
        taken.update(f"\\u{ord(surrogate):04x}" for surrogate in known)
        free = (chr(code) for code in _SURROGATES if f"\\u{code:04x}" not in taken)

        def surrogate_for(character: str) -> str:
            surrogate = surrogate_of.get(character) or next(free, None)
            if surrogate is None:
                raise UnsupportedConversation(
                    "the messages contain too many different JSON escapes of surrogates (\\ud800 to \\udfff), or "
                    "characters that the tokenizer normalises, so no surrogate is left for marks. Shorten the messages."
                )
            return surrogate_of.setdefault(character, surrogate)

        def mask_text(text: str, is_key: bool) -> str:
            for lone in _LONE_SURROGATE.finditer(text):
                if lone[0] not in known:
                    # Encode a lone surrogate of the message itself here, so that it raises its usual error.
                    self._tokenizer.encode(text[: lone.end()])
            pieces: list[str] = []
            end = 0
            for at in sorted(find_marks(text, is_key)):
                pieces += (text[end:at], surrogate_for(text[at]))
                end = at + 1
            return "".join((*pieces, text[end:]))

        masked: _T = _map_texts(value, mask_text, kept_keys)
        self._originals = {surrogate: character for character, surrogate in surrogate_of.items()}
        # Some templates write JSON in ASCII, where marks become JSON escapes.
        self._originals |= {f"\\u{ord(surrogate):04x}": text for text, surrogate in surrogate_of.items()}
        self._marks = re.compile("|".join(map(re.escape, self._originals))) if surrogate_of else None
        return masked

    def _find_marks(self, text: str, is_key: bool) -> set[int]:
        marks = self._finder.find_key_marks(text) if is_key else self._finder.find_marks(text)
        marks.update(self._tokenizer.characters_that_change(text))
        return marks

    def restore(self, text: str) -> str:
        """Return a text in which the original characters replace the marks."""
        return text if self._marks is None else self._marks.sub(lambda mark: self._originals[mark[0]], text)

    def template_tokens(self, masked_text: str) -> list[int]:
        """Return the control tokens of a text that have no marked character."""
        text = masked_text if self._marks is None else self._marks.sub(_FILLER, masked_text)
        return [token for token in self._tokenizer.encode(text) if token in self._tokenizer.control_ids]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text as `FastTokenizer.encode` does, but encode marked control tokens as text."""
        if self._marks is None or not self._marks.search(text):
            return self._tokenizer.encode(text, add_special_tokens)
        return self._encode_masked(text)["input_ids"]

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> EncodedText:
        """Encode a text as `encode` does; return the ids, and on request the offsets."""
        if self._marks is None or not self._marks.search(text):
            return self._tokenizer(
                text, add_special_tokens=add_special_tokens, return_offsets_mapping=return_offsets_mapping
            )
        return self._encode_masked(text)

    def _encode_masked(self, masked_text: str) -> EncodedText:
        """Return the ids, and the offsets in the masked text, where a mark can be an escape of several characters."""
        assert self._marks is not None
        marked_at: list[int] = []
        after_escapes: list[int] = []
        for mark in self._marks.finditer(masked_text):
            marked_at.append(mark.start() - _ESCAPE_SURPLUS * len(after_escapes))
            if len(mark[0]) > 1:
                after_escapes.append(marked_at[-1] + 1)
        restored = self.restore(masked_text)
        encoded = self._encode_unless_marks_are_control_tokens(restored, marked_at)
        if encoded is None:
            encoded = self._encode_around_template_tokens(restored, self._marks.sub(_FILLER, masked_text))
        if not after_escapes:
            return encoded
        offsets = [
            (
                begin + _ESCAPE_SURPLUS * bisect_right(after_escapes, begin),
                end + _ESCAPE_SURPLUS * bisect_right(after_escapes, end),
            )
            for begin, end in encoded["offset_mapping"]
        ]
        return EncodedText(input_ids=encoded["input_ids"], offset_mapping=offsets)

    def _encode_unless_marks_are_control_tokens(self, text: str, marked_at: Sequence[int]) -> EncodedText | None:
        """Encode a text; return None if a control token in the result contains a marked character."""
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        takes_mark = any(
            bisect_left(marked_at, begin) < bisect_left(marked_at, end)
            for _, begin, end in self.control_tokens_of(encoded)
        )
        return None if takes_mark else encoded

    def control_tokens_of(self, encoded: EncodedText) -> list[tuple[int, int, int]]:
        """Return the id, the start and the end of each control token in an encoded text."""
        return [
            (token, begin, end)
            for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if token in self._tokenizer.control_ids
        ]

    def _encode_around_template_tokens(self, text: str, template_text: str) -> EncodedText:
        """Encode `text`, and keep only the control tokens of `template_text`, which has the same length."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        template_tokens = self.control_tokens_of(self._tokenizer(template_text, return_offsets_mapping=True))
        end = 0
        for token, begin, next_end in (*template_tokens, (None, len(text), len(text))):
            between = self._tokenizer.encode_as_text(text[end:begin], begins=end == 0)
            ids += between["input_ids"]
            offsets += ((first + end, last + end) for first, last in between["offset_mapping"])
            if token is not None:
                ids.append(token)
                offsets.append((begin, next_end))
            end = next_end
        return EncodedText(input_ids=ids, offset_mapping=offsets)


def _first_mark(part: str) -> int:
    """Return the position of the first character that is not a letter or digit, because marks must not change words."""
    return next((at for at, character in enumerate(part) if not character.isalnum()), 0)


def _last_mark(part: str) -> int:
    return len(part) - 1 - _first_mark(part[::-1])


def _positions(text: str, wanted: str) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + 1)


def _texts(value: Any, is_key: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield every text in messages or tools, and whether the text is a key."""
    if isinstance(value, str):
        yield value, is_key
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key, is_key=True)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _map_texts(
    value: Any, change: Callable[[str, bool], str], kept_keys: Collection[str] = (), is_key: bool = False
) -> Any:
    """Return messages or tools with changed texts. Texts under the keys `kept_keys` stay as they are."""
    if isinstance(value, str):
        return change(value, is_key)
    if isinstance(value, Mapping):
        return {
            _map_texts(key, change, is_key=True): item
            if key in kept_keys and isinstance(item, str)
            else _map_texts(item, change, kept_keys)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_map_texts(item, change, kept_keys) for item in value)
    return value
