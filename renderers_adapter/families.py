"""Lists the model families that can be rendered, by their names in a configuration.

A family names its renderer in the `renderers` package and the geometry of its images, and says what its template cannot
write. Text-only families have no geometry and no pad token.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from renderers_adapter.errors import AdapterError


class UnknownRenderer(AdapterError):
    """No family has the given name."""


@dataclass(frozen=True, slots=True)
class RendererFamily:
    """A model family and its chat format.

    Attributes:
        name: the name of the family in a configuration.
        renderer: the name of the family's renderer in the `renderers` package.
        geometry: the name of the family's geometry; None if the family is text-only.
        image_pad_token: the token for one image in logical ids; None if the family is text-only.
        other_media_tokens: the tokens for videos and other media. Engines refuse a prompt with such a token.
        missing_tokens: tokens that the renderer needs at its creation, but that the family's tokenizers may not have.
            Conversations that would use them are refused.
        requires_system_message: whether a conversation must begin with a system message, because the family's template
            would add one.
        supports_tools: whether the family's template can write tools and their results.
        requires_tool_names: whether the family's template writes the name of the tool with each result.
        vocabulary_file: a file that the renderer needs in addition to the tokenizer, and downloads if it is missing;
            None if the renderer does not need one.
        encodes_messages_as_text: whether the renderer itself encodes control tokens in messages as text.
        model_types: the values of `model_type` in the config.json of the family's checkpoints. Values that checkpoints
            with many different chat formats have, such as `llama`, are left out.
        uses_checkpoint_template: whether the renderer is the checkpoint's own chat template.
    """

    name: str
    renderer: str
    geometry: str | None = None
    image_pad_token: str | None = None
    other_media_tokens: tuple[str, ...] = ()
    missing_tokens: tuple[str, ...] = ()
    requires_system_message: bool = False
    supports_tools: bool = True
    requires_tool_names: bool = False
    vocabulary_file: str | None = None
    encodes_messages_as_text: bool = False
    model_types: tuple[str, ...] = ()
    uses_checkpoint_template: bool = False


TEMPLATE_FAMILY = "template"
"""The family whose renderer uses the checkpoint's own chat template."""

_QWEN_OTHER_MEDIA = ("<|video_pad|>", "<|vision_pad|>")


def _qwen_vl(name: str, *model_types: str) -> RendererFamily:
    return RendererFamily(name, name, "qwen_vl", "<|image_pad|>", _QWEN_OTHER_MEDIA, model_types=model_types)


def _qwen2_vl(name: str, model_type: str) -> RendererFamily:
    # With a system message, the template of Qwen2-VL writes the same text as Qwen3-VL's, but it does not support tools.
    missing_tokens = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "</think>")
    return RendererFamily(
        name,
        "qwen3-vl",
        "qwen_vl",
        "<|image_pad|>",
        _QWEN_OTHER_MEDIA,
        missing_tokens,
        requires_system_message=True,
        supports_tools=False,
        model_types=(model_type,),
    )


_QWEN3_5_TYPES = ("qwen3_5", "qwen3_5_moe")
_QWEN3_TYPES = ("qwen3", "qwen3_moe")
_TEXT_ONLY: Mapping[str, tuple[str, ...]] = {
    "deepseek-r1": (),
    "deepseek-v3": (),
    "deepseek-v4": ("deepseek_v4",),
    "gemma4": (),
    "glm-4.5": ("glm4_moe",),
    "glm-5": ("glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
    "glm-5.1": ("glm_moe_dsa",),
    "glm-5.3": ("glm_moe_dsa",),
    "hy3": ("hy_v3",),
    "inkling": (),
    "kimi-k2": (),
    **dict.fromkeys(("laguna-m.1", "laguna-s-2.1", "laguna-xs-2.1", "laguna-xs.2"), ("laguna",)),
    "llama-3": (),
    "minimax-m2": ("minimax_m2",),
    **dict.fromkeys(("nemotron-3", "nemotron-3-ultra", "nemotron-3.5"), ("nemotron_h",)),
    "prime-qwen3": _QWEN3_TYPES,
    "qwen3": _QWEN3_TYPES,
}

FAMILIES: Mapping[str, RendererFamily] = MappingProxyType(
    {
        family.name: family
        for family in (
            _qwen_vl("qwen3-vl", "qwen3_vl", "qwen3_vl_moe"),
            *(_qwen_vl(name, *_QWEN3_5_TYPES) for name in ("qwen3.5", "qwen3.6", "qwen3.8")),
            _qwen2_vl("qwen2.5-vl", "qwen2_5_vl"),
            _qwen2_vl("qwen2-vl", "qwen2_vl"),
            RendererFamily("kimi-k2.5", "kimi-k2.5", "kimi_k25", "<|media_pad|>", model_types=("kimi_k25",)),
            RendererFamily(
                "gpt-oss",
                "gpt-oss",
                requires_tool_names=True,
                vocabulary_file="o200k_base.tiktoken",
                encodes_messages_as_text=True,
                model_types=("gpt_oss",),
            ),
            RendererFamily(TEMPLATE_FAMILY, TEMPLATE_FAMILY, uses_checkpoint_template=True),
            *(RendererFamily(name, name, model_types=types) for name, types in _TEXT_ONLY.items()),
        )
    }
)


ALL_MEDIA_TOKENS = tuple(
    dict.fromkeys(
        token
        for family in FAMILIES.values()
        if family.image_pad_token is not None
        for token in (family.image_pad_token, *family.other_media_tokens)
    )
)
"""The tokens for images and other media of all families."""


def get_family(name: str) -> RendererFamily:
    """Return the family with this name.

    Raises:
        UnknownRenderer: no family has this name. The message lists all names.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    nearest = _misspelt_family(name)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise UnknownRenderer(
        f"renderer {name!r} is not known.{hint} Use one of {', '.join(sorted(FAMILIES))}. The renderer "
        f"{TEMPLATE_FAMILY} uses the chat template in the model's directory, so it fits any text model."
    )


def _misspelt_family(name: str) -> str | None:
    """Return a similar name with the same numbers, or None. Another number would mean another family."""
    same_numbers = [family for family in FAMILIES if re.findall(r"\d+", family) == re.findall(r"\d+", name)]
    return next(iter(difflib.get_close_matches(name.lower(), same_numbers, n=1, cutoff=0.85)), None)
