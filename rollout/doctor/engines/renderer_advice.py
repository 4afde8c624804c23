"""Finds settings with which our renderer writes the prompts of a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.families import FAMILIES
from rollout.config.sections import ModelConfig
from rollout.doctor.engines.comparison import ServerPrompt, compare_prompts
from rollout.doctor.engines.known_differences import KnownDifference
from rollout.doctor.engines.own_prompts import OwnRenderer

THINKING_SWITCH = "enable_thinking"
"""The argument of templates that switches reasoning on and off."""


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

    The settings that change least are preferred.
    """
    best: Advice | None = None
    for settings in _settings(renderer.model):
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


def _settings(model: ModelConfig) -> Iterator[dict[str, Any]]:
    """Yield the settings to try: first other arguments of the template, and then other families."""
    without_switch = {name: value for name, value in model.template.items() if name != THINKING_SWITCH}
    templates = [
        model.template,
        {**model.template, THINKING_SWITCH: True},
        {**model.template, THINKING_SWITCH: False},
        without_switch,
    ]
    # A family with a vocabulary of its own would download it.
    others = [name for name, family in FAMILIES.items() if name != model.renderer and family.vocabulary_file is None]
    for name in (model.renderer, *others):
        for template in templates:
            yield {"renderer": name, "template": template}


def _describe(model: ModelConfig, settings: dict[str, Any]) -> str:
    changes = []
    if settings["renderer"] != model.renderer:
        changes.append(f"set model.renderer to {settings['renderer']}")
    if settings["template"] != model.template:
        value = settings["template"].get(THINKING_SWITCH)
        changes.append(
            f"remove {THINKING_SWITCH} from model.template"
            if value is None
            else f"set model.template.{THINKING_SWITCH} to {str(value).lower()}"
        )
    return " and ".join(changes)
