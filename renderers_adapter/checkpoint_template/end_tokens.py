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
) -> list[str]:
    """Return the end tokens that the checkpoint's files name, and the one with which its template closes an answer.

    Raises:
        ChatTemplateError: there is none, so an answer would only end at its limit.
    """
    ids = [token_id for name in _CONFIG_FILES for token_id in _end_ids(directory / name)]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    found = [tokenizer.decode(token_id) for token_id in ids if 0 <= token_id < tokenizer.vocab_size]
    closing = _closing_token(template, arguments, tokenizer)
    tokens = list(dict.fromkeys((*found, *([closing] if closing else []))))
    if not tokens:
        raise ChatTemplateError(
            f"nothing says which token ends an answer: neither eos_token_id in {' or '.join(_CONFIG_FILES)} of "
            f"{directory}, nor eos_token in tokenizer_config.json, nor the chat template. Add the checkpoint's "
            "generation_config.json."
        )
    return tokens


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
