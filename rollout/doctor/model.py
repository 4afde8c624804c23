"""The check of the model's files: the tokenizer, the renderer, and the processor of images."""

from pathlib import Path

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.parser_advice import advise_parsers
from renderers_adapter.checkpoint_template.renderer import load_template
from renderers_adapter.families import TEMPLATE_FAMILY
from rollout.config.load import Config
from rollout.config.model_directory import require_model, written_model_path
from rollout.config.model_type import check_model_type
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig


def check_model(config: Config) -> str:
    """Check that the model's files can be opened and that the renderer belongs to the model; return the finding.

    Raises:
        ModelNotFound: there is nothing at `model.path`.
        ConfigurationError: the renderer belongs to another model than `model.path`.
        AdapterError: the tokenizer or the renderer cannot be opened.
    """
    model = config.model
    require_model(model.path, Path(config.file_name))
    adapter = RendererAdapter.open(model.path, model.renderer, renderer_options(model))
    finding = (
        f"{written_model_path(model.path)}: vocabulary of {adapter.tokenizer.vocab_size:,} tokens, "
        f"renderer {model.renderer}"
        + (f", images {adapter.geometry.family}" if adapter.geometry else ", text only")
        + f"; {check_model_type(model)}"
    )
    return finding + (_describe_template(model, adapter) if model.renderer == TEMPLATE_FAMILY else "")


def _describe_template(model: ModelConfig, adapter: RendererAdapter) -> str:
    template = load_template(model.path, renderer_options(model))
    end_tokens = " or ".join(adapter.tokenizer.decode([token_id]) for token_id in adapter.stop_token_ids)
    advice = advise_parsers(template, adapter.tokenizer)
    return (
        f"; template {template.origin}; an answer ends with {end_tokens}"
        + _describe_parser("tool_parser", model.tool_parser, "calls", advice.tool_parser)
        + _describe_parser("reasoning_parser", model.reasoning_parser, "reasoning", advice.reasoning_parser)
    )


def _describe_parser(setting: str, name: str | None, parts: str, proposed: str | None) -> str:
    if name is not None:
        return f"; the parser {name} reads {parts}"
    if proposed is None:
        return f"; {parts} would stay text"
    return f"; {parts} would stay text: set model.{setting} to {proposed}, which reads what the template writes"
