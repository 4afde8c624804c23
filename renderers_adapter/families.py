"""The model families that we render, by the name a configuration gives them.

A family says which renderer of the `renderers` package writes its tokens, which geometry counts the placeholders of
its images, and what its template cannot say. Text-only families have no geometry and no pad token; this is the only
difference.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from renderers_adapter.errors import AdapterError


class UnknownRenderer(AdapterError):
    """No family of that name."""


@dataclass(frozen=True, slots=True)
class RendererFamily:
    """One chat format.

    Attributes:
        name: the name that a configuration gives it.
        renderer: its name in the `renderers` package.
        geometry: the family of its image layout; None for text only.
        image_pad_token: the token that stands for one image before expansion.
        other_media_tokens: tokens that stand for videos and the like. Engines refuse a prompt with one of them.
        missing_tokens: tokens that the renderer asks for at start and that the family's tokenizers may lack. Nothing
            that would write one of them is rendered.
        requires_system_message: the family's own template adds a system message where the conversation has none.
        supports_tools: whether the family's own template knows tools and their results.
        requires_tool_names: its template writes of each result which tool it is of.
        vocabulary_file: a file that its renderer reads besides the tokenizer, and downloads where it is not found.
        encodes_messages_as_text: its renderer writes no control token for the text of a message, whatever it spells.
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


_QWEN_OTHER_MEDIA = ("<|video_pad|>", "<|vision_pad|>")


def _qwen_vl(name: str) -> RendererFamily:
    return RendererFamily(name, name, "qwen_vl", "<|image_pad|>", _QWEN_OTHER_MEDIA)


def _qwen2_vl(name: str) -> RendererFamily:
    # Below a system message its template writes what Qwen3-VL's does, save for tools, which it does not know at all.
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
    )


_TEXT_ONLY = (
    *("deepseek-r1", "deepseek-v3", "deepseek-v4", "gemma4", "glm-4.5", "glm-5", "glm-5.1", "glm-5.3"),
    *("hy3", "inkling", "kimi-k2", "laguna-m.1", "laguna-s-2.1", "laguna-xs-2.1", "laguna-xs.2", "llama-3"),
    *("minimax-m2", "nemotron-3", "nemotron-3-ultra", "nemotron-3.5", "prime-qwen3", "qwen3"),
)

FAMILIES: Mapping[str, RendererFamily] = MappingProxyType(
    {
        family.name: family
        for family in (
            *(_qwen_vl(name) for name in ("qwen3-vl", "qwen3.5", "qwen3.6", "qwen3.8")),
            *(_qwen2_vl(name) for name in ("qwen2-vl", "qwen2.5-vl")),
            RendererFamily("kimi-k2.5", "kimi-k2.5", "kimi_k25", "<|media_pad|>"),
            RendererFamily(
                "gpt-oss",
                "gpt-oss",
                requires_tool_names=True,
                vocabulary_file="o200k_base.tiktoken",
                encodes_messages_as_text=True,
            ),
            *(RendererFamily(name, name) for name in _TEXT_ONLY),
        )
    }
)


def get_family(name: str) -> RendererFamily:
    """The family of this name.

    Raises:
        UnknownRenderer: there is none; the message lists all of them.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    nearest = _misspelt_family(name)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise UnknownRenderer(f"renderer {name!r} is not known.{hint} Known are: {', '.join(sorted(FAMILIES))}.")


def _misspelt_family(name: str) -> str | None:
    """The family whose name this may be, misspelt: with the same numbers, because another number is another family."""
    same_numbers = [family for family in FAMILIES if re.findall(r"\d+", family) == re.findall(r"\d+", name)]
    return next(iter(difflib.get_close_matches(name.lower(), same_numbers, n=1, cutoff=0.85)), None)
