"""Messages to render, and the tokens of rendered messages."""

from collections.abc import Sequence
from typing import Any

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.families import FAMILIES

BUILT_IN = sorted(name for name, family in FAMILIES.items() if not family.uses_checkpoint_template)
"""The families whose renderers are in the `renderers` package."""
IMAGE = {"type": "image", "hash": "0" * 32}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def joined(segments: Sequence[Any]) -> list[int]:
    return [token for segment in segments for token in segment.ids.tolist()]


def rendered_ids(adapter: RendererAdapter, messages: Sequence[Any], tools: Sequence[Any] | None = None) -> list[int]:
    rendered = adapter.render(messages, tools)
    return [*joined(rendered.segments), *rendered.generation_prompt.tolist()]
