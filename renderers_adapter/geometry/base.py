"""The contract of a geometry: how many placeholders an image takes, from its size alone.

    geometry = geometry_for("qwen_vl", processor_config)
    layout = geometry.layout(width=800, height=600)
    layout.grid, layout.tokens                   # ((1, 38, 50), 475)

A geometry is a small frozen value made of the knobs of one checkpoint's image processor. Sizes are those of the image
as it is displayed, that is after its EXIF orientation was applied.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from ..errors import AdapterError

_FAMILY_NAME_PATTERN = re.compile(r"[A-Za-z0-9_.-]+")


class GeometryError(AdapterError):
    """A size, a processor configuration or a family that no layout can be computed for."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The layout of one image.

    Attributes:
        grid: its patches as (t, h, w).
        tokens: how many placeholders it takes in the expanded prompt.
    """

    grid: tuple[int, int, int]
    tokens: int


class Geometry(ABC):
    """The layout contract of one family under one processor configuration.

    Attributes:
        family: the name of the family.
        vllm_modality: vLLM's name for the images of this family; None: `image`.
        grid_key: the key of the grid in a descriptor's payload.
    """

    family: ClassVar[str]
    vllm_modality: ClassVar[str | None] = None
    grid_key: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the knobs of a checkpoint.

        Raises:
            GeometryError: a knob is missing or is not what it should be.
        """

    @abstractmethod
    def layout(self, *, width: int, height: int) -> ImageLayout:
        """The layout of an image of this displayed size.

        Raises:
            GeometryError: the family cannot take an image of this size.
        """

    @property
    @abstractmethod
    def knobs(self) -> Mapping[str, Any]:
        """What the layout depends on, under the names that enter the fingerprint."""

    @abstractmethod
    def tokens(self, grid: tuple[int, int, int]) -> int:
        """The placeholders of an image with this grid."""

    @cached_property
    def fingerprint(self) -> str:
        """The name of this layout contract; equal on both sides, or pixels and placeholders disagree."""
        return layout_fingerprint(self.family, self.knobs)

    def payload(self, layout: ImageLayout) -> dict[str, Any]:
        """The family's own part of a raw descriptor."""
        return {self.grid_key: [list(layout.grid)]}

    def grid(self, payload: Mapping[str, Any]) -> tuple[int, int, int]:
        """The grid of a descriptor's payload, written as `[[t, h, w]]` or `[t, h, w]`.

        Raises:
            GeometryError: the payload is not one of this family.
        """
        value = payload.get(self.grid_key)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(_is_positive_integer(side) for side in value)
        ):
            raise GeometryError(
                f"the payload of a {self.family} image must be {{{self.grid_key!r}: [[t, h, w]]}} with three positive"
                f" integers, but it is {str(dict(payload))[:200]}"
            )
        return value[0], value[1], value[2]


def layout_fingerprint(family: str, knobs: Mapping[str, Any]) -> str:
    """The 32 hex digits that name a layout contract: a hash of a family and its knobs, not of a model or an image."""
    if not _FAMILY_NAME_PATTERN.fullmatch(family):
        raise GeometryError(f"the family {family!r} is not a name made of letters, digits, '_', '.' and '-'")
    try:
        fields = [f"{key}={json.dumps(knobs[key], sort_keys=True, separators=(',', ':'))}" for key in sorted(knobs)]
    except (TypeError, ValueError) as error:
        raise GeometryError(f"the knobs of {family!r} cannot be written as JSON: {error}") from error
    return hashlib.sha256(":".join(["image-layout:v1", family, *fields]).encode()).hexdigest()[:32]


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
