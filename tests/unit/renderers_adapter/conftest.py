"""An adapter for any family by its name, on the small tokenizer that we ship."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokenizer import load_tokenizer


class Harmony:
    """Writes the same tokens around a message as the library of gpt-oss, whose vocabulary cannot be shipped.

    It writes less for system and developer messages, so tests with it do not prove the library's format for them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(self, message: Any) -> list[int]:
        fields = message.to_dict()
        content = fields["content"]
        body = content if isinstance(content, str) else "".join(part.get("text", str(part)) for part in content)
        to = f" to={fields['recipient']}" if fields.get("recipient") else ""
        channel = f"<|channel|>{fields['channel']}" if fields.get("channel") else ""
        calls = fields["role"] == "assistant" and to
        header = f"<|start|>{fields.get('name') or message.author.role.value}{to}{channel}<|message|>"
        body_ids = self._tokenizer.encode_as_text(body)["input_ids"]
        return [
            *self._tokenizer.encode(header),
            *body_ids,
            *self._tokenizer.encode(f"<|{'call' if calls else 'end'}|>"),
        ]

    def render_conversation(self, conversation: Any) -> list[int]:
        return [token for message in conversation.messages for token in self.render(message)]


@pytest.fixture
def adapter_for(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RendererAdapter]:
    def fit(family: str) -> RendererAdapter:
        if family == "gpt-oss":
            from renderers import gpt_oss

            monkeypatch.setattr(gpt_oss, "load_harmony_encoding", lambda _: Harmony(load_tokenizer(tmp_path)))
        return fit_to(tmp_path, tiny_model, family)

    return fit


def fit_to(directory: Path, tiny_model: Path, family: str) -> RendererAdapter:
    """Return an adapter on the small tokenizer with the special tokens that this family's renderer needs."""
    shutil.copytree(tiny_model, directory, dirs_exist_ok=True)
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                **json.loads((tiny_model / "preprocessor_config.json").read_text("utf-8")),
                "media_proc_cfg": {
                    "patch_size": 14,
                    "merge_kernel_size": 2,
                    "in_patch_limit": 16384,
                    "patch_limit_on_one_side": 512,
                    "fixed_output_tokens": None,
                    "image_mean": [0.5] * 3,
                    "image_std": [0.5] * 3,
                },
            }
        )
    )
    wanted = _WANTED_TOKENS.setdefault(family, [])
    add_tokens(directory / "tokenizer.json", wanted)
    for _ in range(100):
        try:
            return RendererAdapter.open(directory, family)
        except AdapterError as error:
            error_text = str(error)
        wanted += re.findall(r"token (?:for )?'([^']+)'", error_text)
        add_tokens(directory / "tokenizer.json", wanted[-1:])
    raise AssertionError(f"{family} asks for more than a hundred tokens")


def add_tokens(file: Path, tokens: Sequence[str]) -> None:
    backend = Tokenizer.from_file(str(file))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    backend.save(str(file))


_WANTED_TOKENS: dict[str, list[str]] = {}
"""The special tokens that each family's renderer needs, as found so far."""
