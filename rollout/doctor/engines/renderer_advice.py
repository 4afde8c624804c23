"""Finds settings with which our renderer writes the prompts of a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.families import FAMILIES, TEMPLATE_FAMILY
from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig
from rollout.doctor.engines.comparison import ServerPrompt, compare_prompts
from rollout.doctor.engines.known_differences import KnownDifference
from rollout.doctor.engines.own_prompts import OwnRenderer

THINKING_SWITCH = "enable_thinking"
"""The argument of templates that switches reasoning on and off."""
_ONLY_OF_TEMPLATES = ("tool_parser", "reasoning_parser")
"""The settings that only the renderer `template` has."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings that fit a server.

    Attributes:
        fix: what to change in the YAML.
        renderer: the renderer that fits.
        equal: the number of conversations whose prompts are then equal; there are no differences.
    """

    fix: str
    renderer: str
    equal: int


async def advise(renderer: OwnRenderer, server_prompts: Sequence[ServerPrompt]) -> Advice | None:
    """Return the settings with which most prompts are equal and none differs; None if there are no such settings.

    The settings that change least are preferred. The renderer `template` is not among the others, because a built-in
    renderer writes a little more than a template; see `advise_template`.
    """
    built_in = [name for name, family in FAMILIES.items() if not family.uses_checkpoint_template]
    return await _find_best(renderer, server_prompts, [renderer.model.renderer, *built_in])


async def advise_template(renderer: OwnRenderer, server_prompts: Sequence[ServerPrompt]) -> Advice | None:
    """Return the settings of the renderer `template` with which all prompts are equal; None if there are none."""
    advice = await _find_best(renderer, server_prompts, [TEMPLATE_FAMILY])
    return advice if advice and advice.equal == len(server_prompts) else None


async def _find_best(
    renderer: OwnRenderer, server_prompts: Sequence[ServerPrompt], names: Sequence[str]
) -> Advice | None:
    best: Advice | None = None
    for settings in _settings(renderer.model, names):
        try:
            other = renderer.with_settings(**settings)
        except AdapterError:  # this family does not fit the tokenizer
            continue
        equal = await _count_equal(other, server_prompts)
        if equal > (best.equal if best else 0):
            best = Advice(_describe(renderer.model, settings), other.model.renderer, equal)
        if equal == len(server_prompts):
            break
    return best


async def _count_equal(renderer: OwnRenderer, server_prompts: Sequence[ServerPrompt]) -> int:
    """Return the number of conversations whose prompts are equal; 0 if one is different."""
    equal = 0
    for server_prompt in server_prompts:
        comparison = await compare_prompts(renderer, [server_prompt])
        if comparison.differences or KnownDifference.UNWRITTEN_REASONING in comparison.known:
            return 0
        equal += comparison.equal
    return equal


def _settings(model: ModelConfig, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the settings to try: the renderers in this order, each with other arguments of its template."""
    for name in dict.fromkeys(names):
        if name == model.renderer:
            given: dict[str, Any] = {"renderer": name}
            arguments = dict(model.template)
        elif FAMILIES[name].vocabulary_file is not None:
            continue  # this family would download its vocabulary
        else:
            given = {"renderer": name, **dict.fromkeys(_ONLY_OF_TEMPLATES)}
            arguments = renderer_options(model).template_arguments
        without_switch = {key: value for key, value in arguments.items() if key != THINKING_SWITCH}
        for template in (
            arguments,
            {**arguments, THINKING_SWITCH: True},
            {**arguments, THINKING_SWITCH: False},
            without_switch,
        ):
            yield {**given, "template": template}


def _describe(model: ModelConfig, settings: dict[str, Any]) -> str:
    changes = []
    if settings["renderer"] != model.renderer:
        changes.append(f"set model.renderer to {settings['renderer']}")
    value = settings["template"].get(THINKING_SWITCH)
    if value != model.template.get(THINKING_SWITCH):
        changes.append(
            f"remove {THINKING_SWITCH} from model.template"
            if value is None
            else f"set model.template.{THINKING_SWITCH} to {str(value).lower()}"
        )
    removed = [f"model.{key}" for key in _ONLY_OF_TEMPLATES if key in settings and getattr(model, key) is not None]
    if TEMPLATE_FILE_ARGUMENT in model.template.keys() - settings["template"].keys():
        removed.append(f"model.template.{TEMPLATE_FILE_ARGUMENT}")
    return " and ".join([*changes, *(f"remove {key}" for key in removed)])
