"""Creates the renderer of a model: one of the `renderers` package, or one that uses the checkpoint's chat template.

The `renderers` package is imported when an adapter is opened, because the import takes half a second.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.families import RendererFamily
from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT, RendererMismatch, RendererOptions
from renderers_adapter.renderers_package import import_renderers
from renderers_adapter.special_text import MaskingTokenizer

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_IMAGE_NUMBERING_ARGUMENTS = frozenset(("add_vision_id",))


def renderer_factory(
    family: RendererFamily, directory: Path, options: RendererOptions
) -> Callable[[MaskingTokenizer], Any]:
    """Return a function that creates a renderer of the family for a tokenizer.

    Raises:
        ChatTemplateError: the checkpoint has no chat template that can be used.
        RendererMismatch: a parser or a template's file is set, but the family has its own.
    """
    if family.uses_checkpoint_template:
        from renderers_adapter.checkpoint_template.renderer import template_renderer_factory

        return template_renderer_factory(directory, options)
    for setting, value in (("tool_parser", options.tool_parser), ("reasoning_parser", options.reasoning_parser)):
        if value is not None:
            raise RendererMismatch(
                f"model.{setting} is only for the renderer template; the renderer {family.name} has its own parser. "
                f"Remove model.{setting}."
            )
    if TEMPLATE_FILE_ARGUMENT in options.template:
        raise RendererMismatch(
            f"model.template.{TEMPLATE_FILE_ARGUMENT} is only for the renderer template; the renderer {family.name} "
            f"reads no chat template. Remove model.template.{TEMPLATE_FILE_ARGUMENT}, or set model.renderer to "
            "template."
        )
    return lambda tokenizer: _create_renderer(family, tokenizer, options.template)


def has_processor_config(directory: Path) -> bool:
    """Whether a checkpoint has the configuration of an image processor."""
    return any((directory / name).is_file() for name in _PROCESSOR_FILES)


def load_processor_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint's image processor.

    Raises:
        AdapterError: the directory does not have the configuration file, or the file is not JSON.
    """
    for name in _PROCESSOR_FILES:
        path = directory / name
        if path.is_file():
            try:
                config = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise AdapterError(f"{path} is not JSON: {error}. Copy it from the checkpoint again.") from None
            return dict(config.get("image_processor", config))
    raise AdapterError(
        f"{directory} has neither {' nor '.join(_PROCESSOR_FILES)}, which determine the number of an image's "
        "tokens; copy one of them from the checkpoint."
    )


def _create_renderer(family: RendererFamily, tokenizer: MaskingTokenizer, template: Mapping[str, Any]) -> Any:
    renderers = import_renderers()
    if numbering_arguments := sorted(_IMAGE_NUMBERING_ARGUMENTS & template.keys()):
        raise RendererMismatch(
            f"the template argument {numbering_arguments[0]!r} numbers the images of a whole conversation, but a "
            "bridge has only its last messages; remove the argument from model.template."
        )
    try:
        renderer_tokenizer = (
            _TokenizerWithMissingTokens(tokenizer, family.missing_tokens) if family.missing_tokens else tokenizer
        )
        return renderers.create_renderer(
            renderer_tokenizer, renderers.config_from_name(family.renderer), chat_template_kwargs=dict(template) or None
        )
    except Exception as error:  # renderers raise different errors for a token that does not exist
        if type(error).__module__ == "openai_harmony":
            raise RendererMismatch(
                f"the renderer {family.name} cannot be created: its vocabulary, {family.vocabulary_file}, was neither "
                f"found nor downloaded ({error}). Set TIKTOKEN_ENCODINGS_BASE to a directory with this file."
            ) from error
        template_fix = f", or correct model.template ({', '.join(template)})" if template else ""
        raise RendererMismatch(
            f"the renderer {family.name} cannot be created for {tokenizer.name_or_path}: {error}. "
            f"Choose the renderer that belongs to the model (model.renderer){template_fix}."
        ) from error


class _TokenizerWithMissingTokens:
    """A tokenizer that gives missing tokens ids beyond its vocabulary, because the renderer needs their ids."""

    def __init__(self, tokenizer: MaskingTokenizer, possibly_missing: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        missing = [
            token for token in possibly_missing if tokenizer.convert_tokens_to_ids(token) == tokenizer.unk_token_id
        ]
        self._made_up_ids = {token: tokenizer.vocab_size + at for at, token in enumerate(missing)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token as `FastTokenizer.convert_tokens_to_ids` does, also of a missing token."""
        found_id: int | None = self._made_up_ids.get(token, self._tokenizer.convert_tokens_to_ids(token))
        return found_id
