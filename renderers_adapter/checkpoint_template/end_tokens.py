"""Finds the tokens that end an answer of a model whose renderer is its chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, ChatTemplateError
from renderers_adapter.special_text import MaskingTokenizer

_CONFIG_FILES = ("generation_config.json", "config.json")
_STAND_IN = "an answer"


def find_end_tokens(
    directory: Path, template: ChatTemplate, arguments: Mapping[str, Any], tokenizer: MaskingTokenizer
) -> dict[int, str]:
    """Return the end tokens that the checkpoint's files name, and the one with which its template closes an answer.

    The result has the text of each control token by its id. A word as an end token also stops an answer, but has an
    empty text here: the same text may be anywhere in a conversation. Ids without a token are left out, as no answer
    can be decoded that ends with one.

    Raises:
        ChatTemplateError: there is none, so an answer would only end at its limit.
    """
    named = [token_id for name in _CONFIG_FILES for token_id in _end_ids(directory / name)]
    ids = [token_id for token_id in named if token_id >= 0 and tokenizer.backend.id_to_token(token_id) is not None]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    closing = _closing_token(template, arguments, tokenizer)
    if closing is not None:
        ids.append(tokenizer.token_id(closing))
    if not ids:
        without_token = f" (the ids {', '.join(map(str, named))} are not in the tokenizer)" if named else ""
        raise ChatTemplateError(
            f"nothing says which token ends an answer: neither eos_token_id in {' or '.join(_CONFIG_FILES)} of "
            f"{directory}{without_token}, nor eos_token in tokenizer_config.json, nor the chat template. Add the "
            "checkpoint's generation_config.json."
        )
    text_of = dict(zip(sorted(tokenizer.control_ids), tokenizer.control_tokens, strict=True))
    return {token_id: text_of.get(token_id, "") for token_id in ids}


def _closing_token(template: ChatTemplate, arguments: Mapping[str, Any], tokenizer: MaskingTokenizer) -> str | None:
    """Return the control token that the template writes directly after an answer, or None."""
    messages = [
        template.for_template({"role": role, "content": content}, None)
        for role, content in (("user", "a question"), ("assistant", _STAND_IN), ("user", "a question"))
    ]
    try:
        text = template.render(messages, None, arguments)
    except Exception:  # noqa: BLE001 - a template may raise any error
        return None  # such as a template that requires a system message
    after = text.partition(_STAND_IN)[2].lstrip()
    return next((token for token in sorted(tokenizer.control_tokens, key=len)[::-1] if after.startswith(token)), None)


def _end_ids(path: Path) -> list[int]:
    try:
        values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ChatTemplateError(f"{path} cannot be read ({error}). Copy it from the checkpoint again.") from None
    found = values.get("eos_token_id") if isinstance(values, dict) else None
    ids = found if isinstance(found, list) else [found]
    return [token_id for token_id in ids if isinstance(token_id, int)]
