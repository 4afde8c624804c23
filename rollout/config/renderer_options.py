"""Converts the section `model` of a configuration to the options of its renderer."""

from renderers_adapter.options import RendererOptions, SpecialText
from rollout.config.sections import ModelConfig


def renderer_options(model: ModelConfig) -> RendererOptions:
    """Return what the section says about the renderer."""
    return RendererOptions(model.template, SpecialText(model.special_text), model.tool_parser, model.reasoning_parser)
