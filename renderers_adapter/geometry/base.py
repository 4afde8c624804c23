"""The contract of a geometry, which computes the layout of an image from its size.

    geometry = geometry_for("qwen_vl", processor_config)
    layout = geometry.layout(width=800, height=600)
    layout.grid, layout.tokens                   # ((1, 38, 50), 475)

A geometry is immutable. It has those settings of a checkpoint's image processor that determine the layout: its *knobs*.
Sizes are those of the displayed image, after its EXIF orientation is applied.
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
    """No layout can be computed for an image size, a processor configuration or a family."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The layout of one image.

    Attributes:
        grid: the number of patches in time, height and width, as (t, h, w).
        tokens: the number of placeholder tokens in expanded ids.
    """

    grid: tuple[int, int, int]
    tokens: int


class Geometry(ABC):
    """The rule that computes layouts for one family and one processor configuration.

    Attributes:
        family: the name of the family.
        vllm_modality: vLLM's name for the images of this family; None if it is `image`.
        grid_key: the key of the grid in a descriptor's payload.
    """

    family: ClassVar[str]
    vllm_modality: ClassVar[str | None] = None
    grid_key: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the geometry for a checkpoint's image processor configuration.

        Raises:
            GeometryError: a knob is missing or invalid.
        """

    @abstractmethod
    def layout(self, *, width: int, height: int) -> ImageLayout:
        """Return the layout of an image with this displayed size.

        Raises:
            GeometryError: the family cannot take an image of this size.
        """

    @property
    @abstractmethod
    def knobs(self) -> Mapping[str, Any]:
        """The settings that determine the layout, by the names that the fingerprint uses."""

    @abstractmethod
    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Return the number of placeholder tokens of an image with this grid."""

    @cached_property
    def fingerprint(self) -> str:
        """The layout fingerprint. Engine and trainer need the same one, or pixels and placeholders do not match."""
        return layout_fingerprint(self.family, self.knobs)

    def payload(self, layout: ImageLayout) -> dict[str, Any]:
        """Return the payload of a descriptor for an image with this layout."""
        return {self.grid_key: [list(layout.grid)]}

    def grid(self, payload: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return the grid in the payload of a descriptor, where it is written as `[[t, h, w]]` or `[t, h, w]`.

        Raises:
            GeometryError: the payload has no valid grid for this family.
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
    """Return the hash of a family and its knobs, 32 hex digits. It is the same for all images and all weights."""
    if not _FAMILY_NAME_PATTERN.fullmatch(family):
        raise GeometryError(f"the family {family!r} is not valid; expected a name of letters, digits, '_', '.' and '-'")
    try:
        fields = [f"{key}={json.dumps(knobs[key], sort_keys=True, separators=(',', ':'))}" for key in sorted(knobs)]
    except (TypeError, ValueError) as error:
        raise GeometryError(f"the knobs of {family!r} cannot be written as JSON: {error}") from error
    return hashlib.sha256(":".join(["image-layout:v1", family, *fields]).encode()).hexdigest()[:32]


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
