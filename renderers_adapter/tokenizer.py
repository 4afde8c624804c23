"""Loads tokenizers from a `tokenizer.json` without transformers, with the interface that `renderers` needs.

    tokenizer = load_tokenizer("models/Qwen3-VL-4B-Instruct")
    tokenizer.encode("a red square")

A `FastTokenizer` does not change after loading, so several threads can share it. Truncation and padding are switched
off, because they would change a prompt.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NotRequired, TypedDict, overload

from tokenizers import AddedToken, Encoding, Tokenizer

from renderers_adapter.errors import AdapterError

_MAX_CACHED_CHARACTERS = 32
"""The ids of texts up to this length are cached, because each turn encodes the same short texts of the template."""

_SPACES = " \t\r\n\v\f\u2581"
"""White space, and the character that many vocabularies use for a space."""


class TokenizerError(AdapterError):
    """A tokenizer cannot be loaded, does not have a required token, or cannot encode a text."""


class EncodedText(TypedDict):
    """An encoded text in the form that transformers' tokenizers return."""

    input_ids: list[int]
    """The token ids."""
    offset_mapping: NotRequired[list[tuple[int, int]]]
    """The (start, end) of each token, in characters of the text; missing if the caller did not ask for it."""


class FastTokenizer:
    """A tokenizer of the `tokenizers` package with the interface of transformers' tokenizers.

    Chat templates write control tokens such as `<|im_end|>` as text, and `encode` converts them to tokens.
    `encode_as_text` does not convert them. All added tokens are control tokens, also those that are not marked as
    `special`, such as `<think>`. Exceptions are added tokens that are white space or a single character.

    Attributes:
        control_tokens: the texts of the control tokens.
        control_ids: the ids of the control tokens.
        name_or_path: the path from which the tokenizer was loaded.
        eos_token_id: the id of the token that ends a text; None if the model's files do not name one.
        unk_token_id: the id for unknown tokens; None if the model's files do not name one.
    """

    def __init__(
        self, backend: Tokenizer, *, name_or_path: str, eos_token: str | None = None, unk_token: str | None = None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._encode_cached = lru_cache(maxsize=1024)(lambda *given: tuple(self._encode_text(*given).ids))
        added_tokens = backend.get_added_tokens_decoder()
        self.control_ids = frozenset(
            token_id for token_id, token in added_tokens.items() if len(token.content.strip(_SPACES)) > 1
        )
        self.control_tokens = tuple(added_tokens[token_id].content for token_id in sorted(self.control_ids))
        normalizes = any(added_tokens[token_id].normalized for token_id in self.control_ids)
        self._normalizer = backend.normalizer if normalizes else None
        self.name_or_path = name_or_path
        self.eos_token_id: int | None = None if eos_token is None else self.token_id(eos_token)
        self.unk_token_id: int | None = None if unk_token is None else self.token_id(unk_token)

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` package, for what this class does not have. Do not change it."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary, including the added tokens."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text. Control tokens that are written in the text become control tokens."""
        if len(text) > _MAX_CACHED_CHARACTERS:
            return self._encode_text(text, add_special_tokens).ids
        return list(self._encode_cached(text, add_special_tokens))

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of one id or of several ids."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> EncodedText:
        """Encode a text as `encode` does; return the ids, and on request the offsets."""
        encoding = self._encode_text(text, add_special_tokens)
        if return_offsets_mapping:
            return EncodedText(input_ids=encoding.ids, offset_mapping=encoding.offsets)
        return EncodedText(input_ids=encoding.ids)

    def characters_that_change(self, text: str) -> list[int]:
        """Return the positions of characters that the tokenizer replaces before it encodes, such as `＜` by `<`."""
        if self._normalizer is None or self._normalizer.normalize_str(text) == text:
            return []
        return [at for at, character in enumerate(text) if self._normalizer.normalize_str(character) != character]

    def encode_as_text(self, text: str, *, follows_text: bool = False) -> EncodedText:
        """Return the ids and offsets of a text. Control tokens that are written in the text stay text.

        Some tokenizers write a space before the first word. They write none if the text follows another text.

        Raises:
            TokenizerError: the vocabulary can encode a part of the text only as a control token.
        """
        encoding = _encode_with(self._following_text_backend if follows_text else self._text_backend, text)
        control_spans = [
            span for token_id, span in zip(encoding.ids, encoding.offsets, strict=True) if token_id in self.control_ids
        ]
        if not control_spans:
            return EncodedText(input_ids=encoding.ids, offset_mapping=encoding.offsets)
        # The vocabulary itself has the control token as a word. To avoid this word, encode its first character
        # separately.
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for begin, end in pairwise((0, *(begin + 1 for begin, _ in control_spans), len(text))):
            if end - begin == len(text):
                raise TokenizerError(
                    f"The tokenizer {self.name_or_path} can encode {text!r} only as a control token. Remove this text "
                    "from the messages, or set model.special_text: allow."
                )
            piece = self.encode_as_text(text[begin:end], follows_text=follows_text or begin > 0)
            ids += piece["input_ids"]
            offsets += ((first + begin, last + begin) for first, last in piece["offset_mapping"])
        return EncodedText(input_ids=ids, offset_mapping=offsets)

    @cached_property
    def _text_backend(self) -> Tokenizer:
        """The same tokenizer without control tokens. It is created on demand, because few conversations need it."""
        return self._without_control_tokens(self._backend.to_str())

    @cached_property
    def _following_text_backend(self) -> Tokenizer:
        """The same as `_text_backend`, but without a space before the first word of a text."""
        written = self._backend.to_str()
        if '"prepend_scheme":"first"' not in written:
            return self._text_backend
        return self._without_control_tokens(written.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))

    def _without_control_tokens(self, written: str) -> Tokenizer:
        backend = Tokenizer.from_str(written)
        added_tokens = self._backend.get_added_tokens_decoder()
        backend.add_special_tokens([_as_special(added_tokens[token_id]) for token_id in sorted(self.control_ids)])
        backend.encode_special_tokens = True
        return backend

    def _encode_text(self, text: str, add_special_tokens: bool) -> Encoding:
        return _encode_with(self._backend, text, add_special_tokens=add_special_tokens)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int | None] | None:
        """Return the id of a token or of each token; `unk_token_id` for a token that does not exist."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def token_id(self, token: str) -> int:
        """Return the id of a token that must exist.

        Raises:
            TokenizerError: the token does not exist.
        """
        found_id = self._backend.token_to_id(token)
        if found_id is None:
            raise TokenizerError(
                f"The tokenizer {self.name_or_path} has no token {token!r}. "
                "Check that it belongs to the model, or choose the renderer that fits this tokenizer."
            )
        return found_id


def load_tokenizer(path: str | Path) -> FastTokenizer:
    """Load the tokenizer of a model directory, or a `tokenizer.json`.

    A `tokenizer_config.json` in the same directory is read, too.

    Raises:
        TokenizerError: the file does not exist or cannot be read, or it is not a tokenizer.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise TokenizerError(
            f"No tokenizer at {path}: {file} does not exist. "
            "Give a directory with a tokenizer.json, or this file; a model name is not downloaded."
        )
    config = _read_config(file.with_name("tokenizer_config.json"))
    data = _read_bytes(file)
    try:
        backend = Tokenizer.from_buffer(data)
    except Exception as error:  # `tokenizers` has no more specific error class
        raise TokenizerError(
            f"{file} is not a tokenizer that the `tokenizers` package can load ({error}). "
            "Download it again, or save it again from a fast tokenizer of transformers."
        ) from error
    return FastTokenizer(
        backend,
        name_or_path=str(path),
        eos_token=_token_text(config.get("eos_token")),
        unk_token=_token_text(config.get("unk_token")),
    )


def _encode_with(backend: Tokenizer, text: str, *, add_special_tokens: bool = False) -> Encoding:
    try:
        return backend.encode(text, add_special_tokens=add_special_tokens)
    except TypeError as error:
        surrogate = re.search("[\ud800-\udfff]", text)
        if surrogate is None:
            raise
        raise TokenizerError(
            f"The text has a lone surrogate ({surrogate.group()!r}) at character {surrogate.start()}, which cannot be "
            "encoded. It often comes from a JSON escape that was cut in two. Repair or replace the character."
        ) from error


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        special=True,
        normalized=token.normalized,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
    )


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(_read_bytes(file))
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON ({error}). Repair or remove it.") from error
    if not isinstance(config, dict):
        raise TokenizerError(
            f"{file} contains a JSON {type(config).__name__}; expected an object with keys such as eos_token."
        )
    return config


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file} cannot be read ({error.strerror}). Check its permissions.") from error


def _token_text(token: str | dict[str, Any] | None) -> str | None:
    """Return the text of a token in `tokenizer_config.json`. The token is a string, or an object with `content`."""
    return token["content"] if isinstance(token, dict) else token
