"""The geometry of Qwen2-VL, 2.5-VL, 3-VL and 3.5 to 3.8. It rounds sides to whole tokens, within a pixel limit."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .base import Geometry, GeometryError, ImageLayout
from .knobs import ProcessorConfigReader

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class QwenVLGeometry(Geometry):
    """The geometry of the Qwen-VL families, with the knobs of one checkpoint.

    Attributes:
        patch_size: the width and height of a patch, in pixels.
        merge_size: one token stands for `merge_size` × `merge_size` patches.
        temporal_patch_size: the number of frames in one patch.
        min_pixels: the minimum number of pixels of an image after resizing.
        max_pixels: the maximum number of pixels of an image after resizing.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int

    family: ClassVar[str] = "qwen_vl"
    grid_key: ClassVar[str] = "image_grid_thw"

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> Self:
        """See `Geometry.from_processor_config`."""
        reader = ProcessorConfigReader(cls.family, config, nested_under=("image_processor",))
        geometry = cls(
            patch_size=reader.single_or_pair("patch_size"),
            merge_size=reader.single_or_pair("merge_size"),
            temporal_patch_size=reader.integer("temporal_patch_size"),
            min_pixels=reader.integer("min_pixels", "size.shortest_edge"),
            max_pixels=reader.integer("max_pixels", "size.longest_edge"),
        )
        if geometry.min_pixels > geometry.max_pixels:
            raise reader.error(["min_pixels"], f"{geometry.min_pixels} is more than max_pixels {geometry.max_pixels}")
        return geometry

    @property
    def knobs(self) -> Mapping[str, Any]:
        """See `Geometry.knobs`."""
        return asdict(self)

    def layout(self, *, width: int, height: int) -> ImageLayout:
        """See `Geometry.layout`."""
        resized_width, resized_height = self.resized(width=width, height=height)
        grid = (1, resized_height // self.patch_size, resized_width // self.patch_size)
        return ImageLayout(grid, self.tokens(grid))

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """See `Geometry.tokens`."""
        return math.prod(grid) // self.merge_size**2

    def resized(self, *, width: int, height: int) -> tuple[int, int]:
        """Return the width and height after resizing. Both are multiples of `patch_size * merge_size`."""
        if width <= 0 or height <= 0:
            raise GeometryError(f"an image of {width}×{height} has no pixels")
        if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
            raise GeometryError(
                f"an image of {width}×{height} is thinner than 1:{MAX_ASPECT_RATIO}, which the qwen_vl family refuses"
            )
        side_multiple = self.patch_size * self.merge_size
        # `round` rounds half to even. A short side may become 0, but the lower limit below corrects this.
        new_height, new_width = (
            round(height / side_multiple) * side_multiple,
            round(width / side_multiple) * side_multiple,
        )
        if new_height * new_width > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            new_height = max(side_multiple, math.floor(height / shrink / side_multiple) * side_multiple)
            new_width = max(side_multiple, math.floor(width / shrink / side_multiple) * side_multiple)
        elif new_height * new_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_height = math.ceil(height * grow / side_multiple) * side_multiple
            new_width = math.ceil(width * grow / side_multiple) * side_multiple
        return new_width, new_height
