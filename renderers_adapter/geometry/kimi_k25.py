"""The geometry of Kimi K2.5. It scales large images down to a patch limit, then pads images to whole merge cells."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .base import Geometry, GeometryError, ImageLayout
from .knobs import ProcessorConfigReader


@dataclass(frozen=True)
class KimiK25Geometry(Geometry):
    """The geometry of Kimi K2.5, with the knobs of one checkpoint.

    Attributes:
        patch_size: the width and height of a patch, in pixels.
        merge_kernel_size: one token stands for a merge cell of this many patches in height and in width.
        in_patch_limit: the maximum number of patches of an image before padding.
        patch_limit_on_one_side: the maximum number of patches in height, and in width.
        fixed_output_tokens: the number of tokens of every image; None if an image has one token for each merge cell.
        image_mean: the mean of each colour, for normalising; it is a knob because the fingerprint includes it.
        image_std: the standard deviation of each colour, for normalising; a knob for the same reason.
    """

    patch_size: int
    merge_kernel_size: int
    in_patch_limit: int
    patch_limit_on_one_side: int
    fixed_output_tokens: int | None
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    family: ClassVar[str] = "kimi_k25"
    vllm_modality: ClassVar[str | None] = "vision_chunk"
    grid_key: ClassVar[str] = "grid_thws"

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> Self:
        """See `Geometry.from_processor_config`."""
        reader = ProcessorConfigReader(cls.family, config, nested_under=("media_proc_cfg", "image_processor"))
        width, height = reader.value("size.max_width"), reader.value("size.max_height")
        if width != height:
            raise reader.error(["size.max_width"], f"{width!r} and size.max_height {height!r} must be equal")
        mean, std = reader.channel_values("image_mean"), reader.channel_values("image_std")
        return cls(
            patch_size=reader.single_or_pair("patch_size"),
            merge_kernel_size=reader.single_or_pair("merge_kernel_size", "merge_size"),
            in_patch_limit=reader.integer("in_patch_limit", "max_patches"),
            patch_limit_on_one_side=reader.integer("patch_limit_on_one_side", "size.max_height"),
            fixed_output_tokens=reader.optional_integer("fixed_output_tokens"),
            image_mean=(mean[0], mean[1], mean[2]),
            image_std=(std[0], std[1], std[2]),
        )

    @property
    def knobs(self) -> Mapping[str, Any]:
        """See `Geometry.knobs`."""
        return asdict(self)

    def layout(self, *, width: int, height: int) -> ImageLayout:
        """See `Geometry.layout`."""
        new_width, new_height = self.resized(width=width, height=height)
        cell_size = self.patch_size * self.merge_kernel_size
        cells_high, cells_wide = -(-new_height // cell_size), -(-new_width // cell_size)
        grid = (1, cells_high * self.merge_kernel_size, cells_wide * self.merge_kernel_size)
        return ImageLayout(grid, self.tokens(grid))

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """See `Geometry.tokens`."""
        if self.fixed_output_tokens is not None:
            return self.fixed_output_tokens
        return math.prod(grid) // self.merge_kernel_size**2

    def resized(self, *, width: int, height: int) -> tuple[int, int]:
        """Return the width and height after scaling and before padding."""
        if width <= 0 or height <= 0:
            raise GeometryError(f"an image of {width}×{height} has no pixels")
        max_side = self.patch_limit_on_one_side * self.patch_size
        patches = max(1, width // self.patch_size) * max(1, height // self.patch_size)
        scale = min(1.0, math.sqrt(self.in_patch_limit / patches), max_side / width, max_side / height)
        return min(max(1, int(width * scale)), max_side), min(max(1, int(height * scale)), max_side)
