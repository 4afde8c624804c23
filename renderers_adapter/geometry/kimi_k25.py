"""Layout of Kimi K2.5: scaled down to a patch budget, never up, then padded to whole merge cells."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .base import Geometry, GeometryError, Layout
from .knobs import Knobs


@dataclass(frozen=True)
class KimiK25Geometry(Geometry):
    """The knobs of one checkpoint; means and deviations are named because they are part of its fingerprint."""

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
        knobs = Knobs(cls.family, config, nested_under=("media_proc_cfg", "image_processor"))
        width, height = knobs.value("size.max_width"), knobs.value("size.max_height")
        if width != height:
            raise GeometryError(
                f"the image processor configuration of a kimi_k25 checkpoint cannot be used: size.max_width {width!r}"
                f" and size.max_height {height!r} must be equal"
            )
        mean, std = knobs.channels("image_mean"), knobs.channels("image_std")
        return cls(
            patch_size=knobs.square("patch_size"),
            merge_kernel_size=knobs.square("merge_kernel_size", "merge_size"),
            in_patch_limit=knobs.integer("in_patch_limit", "max_patches"),
            patch_limit_on_one_side=knobs.integer("patch_limit_on_one_side", "size.max_height"),
            fixed_output_tokens=knobs.optional_integer("fixed_output_tokens"),
            image_mean=(mean[0], mean[1], mean[2]),
            image_std=(std[0], std[1], std[2]),
        )

    @property
    def knobs(self) -> Mapping[str, Any]:
        return {
            "patch_size": self.patch_size,
            "merge_kernel_size": self.merge_kernel_size,
            "in_patch_limit": self.in_patch_limit,
            "patch_limit_on_one_side": self.patch_limit_on_one_side,
            "fixed_output_tokens": self.fixed_output_tokens,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    def layout(self, *, width: int, height: int) -> Layout:
        new_width, new_height = self.resized(width=width, height=height)
        cell = self.patch_size * self.merge_kernel_size
        cells_high, cells_wide = -(-new_height // cell), -(-new_width // cell)
        grid = (1, cells_high * self.merge_kernel_size, cells_wide * self.merge_kernel_size)
        return Layout(grid, self.tokens(grid))

    def tokens(self, grid: tuple[int, int, int]) -> int:
        if self.fixed_output_tokens is not None:
            return self.fixed_output_tokens
        return math.prod(grid) // self.merge_kernel_size**2

    def resized(self, *, width: int, height: int) -> tuple[int, int]:
        """Width and height after scaling, before padding."""
        if width <= 0 or height <= 0:
            raise GeometryError(f"an image of {width}×{height} has no pixels")
        longest = self.patch_limit_on_one_side * self.patch_size
        patches = max(1, width // self.patch_size) * max(1, height // self.patch_size)
        scale = min(1.0, math.sqrt(self.in_patch_limit / patches), longest / width, longest / height)
        return (
            min(max(1, int(width * scale)), longest),
            min(max(1, int(height * scale)), longest),
        )
