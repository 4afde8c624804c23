"""Small tokenizers of real kinds: byte-level BPE, and BPE with `▁` for spaces and tokens for single bytes.

Their merges are those of the tokenizer that the package ships. Control tokens, their flags, and what happens before and
after the merges are those of the families.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.config.model_directory import BUILTIN_MODELS

_SPACE = "▁"
_BYTE_LEVEL_SPACE = "Ġ"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """An added token and its flags.

    Attributes:
        text: the text of the token.
        special: whether it is marked as special.
        rstrip: whether it takes the white space after it.
    """

    text: str
    special: bool = True
    rstrip: bool = False


def byte_level(control_tokens: Sequence[ControlToken], *, bos_token: str | None) -> dict[str, Any]:
    """Return a tokenizer like that of Llama 3: control tokens are behind the vocabulary, and texts begin with a BOS."""
    model = _shipped_model()
    word_split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    added = _added_tokens(control_tokens, len(model["vocab"]))
    return _tokenizer(
        {**model, "ignore_merges": True},
        added,
        pre_tokenizer=_sequence("pretokenizers", word_split, _byte_level_step(use_regex=False)),
        post_processor=None if bos_token is None else _begins_with(bos_token, added),
        decoder=_byte_level_step(use_regex=True),
    )


def byte_level_with_digits(control_tokens: Sequence[ControlToken]) -> dict[str, Any]:
    """Return a tokenizer like that of SmolLM2: control tokens are at the front, and each digit is a word."""
    model = _shipped_model()
    names = [token.text for token in control_tokens]
    model["vocab"] = {token: at for at, token in enumerate((*names, *model["vocab"]))}
    digits = {"type": "Digits", "individual_digits": True}
    return _tokenizer(
        model,
        _added_tokens(control_tokens, 0),
        pre_tokenizer=_sequence("pretokenizers", digits, _byte_level_step(use_regex=True)),
        decoder=_byte_level_step(use_regex=True),
    )


def metaspace(control_tokens: Sequence[ControlToken], *, bos_token: str) -> dict[str, Any]:
    """Return a tokenizer like that of Mistral: only the beginning of a text gets an additional space."""
    added = _added_tokens(control_tokens, 0)
    return _tokenizer(
        _byte_fallback_model(control_tokens),
        added,
        pre_tokenizer={"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False},
        post_processor=_begins_with(bos_token, added),
        decoder=_sequence("decoders", *_SPACE_DECODERS, _STRIP_FIRST_SPACE),
    )


def prepending(control_tokens: Sequence[ControlToken]) -> dict[str, Any]:
    """Return a tokenizer like that of Phi-3: the text after each control token gets an additional space."""
    prepend = {"type": "Prepend", "prepend": _SPACE}
    return _tokenizer(
        _byte_fallback_model(control_tokens),
        _added_tokens(control_tokens, 0),
        normalizer=_sequence("normalizers", prepend, _WRITE_SPACES),
        decoder=_sequence("decoders", *_SPACE_DECODERS, _STRIP_FIRST_SPACE),
    )


def splitting(control_tokens: Sequence[ControlToken], *, bos_token: str) -> dict[str, Any]:
    """Return a tokenizer like that of Gemma: no text gets a space, and line breaks are words."""
    added = _added_tokens(control_tokens, 0)
    return _tokenizer(
        _byte_fallback_model(control_tokens),
        added,
        normalizer=_WRITE_SPACES,
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        post_processor=_begins_with(bos_token, added),
        decoder=_sequence("decoders", *_SPACE_DECODERS),
    )


_WRITE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_SPACE_DECODERS = (
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)
_STRIP_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _shipped_model() -> dict[str, Any]:
    path = BUILTIN_MODELS["builtin:tiny"] / "tokenizer.json"
    model: dict[str, Any] = json.loads(path.read_text("utf-8"))["model"]
    return model


def _byte_fallback_model(control_tokens: Sequence[ControlToken]) -> dict[str, Any]:
    """Return a BPE whose vocabulary has the control tokens, all bytes, the characters of ASCII, and merges of these."""
    characters = ["\n", _SPACE, *(chr(code) for code in range(ord("!"), 127))]
    names = [*(token.text for token in control_tokens), *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    known = set(characters)
    merges = []
    for pair in _shipped_model()["merges"]:
        left, right = (part.replace(_BYTE_LEVEL_SPACE, _SPACE) for part in pair)
        if left in known and right in known:
            merges.append([left, right])
            known.add(left + right)
            names.append(left + right)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: at for at, token in enumerate(dict.fromkeys(names))},
        "merges": merges,
    }


def _added_tokens(control_tokens: Sequence[ControlToken], first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + at,
            "content": token.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": token.rstrip,
            "normalized": False,
            "special": token.special,
        }
        for at, token in enumerate(control_tokens)
    ]


def _byte_level_step(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(key: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def _begins_with(token: str, added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    token_id = next(entry["id"] for entry in added if entry["content"] == token)
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _tokenizer(model: Mapping[str, Any], added: Sequence[Mapping[str, Any]], **steps: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, **steps, "added_tokens": list(added), "model": dict(model)}
