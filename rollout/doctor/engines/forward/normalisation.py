"""The normalisation of pixels: that of a checkpoint, and those of other checkpoints.

Two families of checkpoints differ only in these constants. Images with the constants of the other family look normal
to a network, so nothing but its log-probs shows the mistake.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The constants with which an image processor normalises the three colours of a pixel.

    Attributes:
        mean: what is subtracted from a value between 0 and 1.
        std: what the difference is divided by.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor_config: Mapping[str, Any]) -> Self:
        """Return the constants in a processor configuration; one half if it has none."""
        return cls(
            tuple(processor_config.get("image_mean") or (0.5, 0.5, 0.5)),
            tuple(processor_config.get("image_std") or (0.5, 0.5, 0.5)),
        )

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"image_mean [{mean}] and image_std [{std}]"

    def others(self) -> "list[Normalisation]":
        """Return the constants of other families."""
        return [known for known in _KNOWN if (known.mean, known.std) != (self.mean, self.std)]

    def change(self, pixel_values: "torch.Tensor", other: "Normalisation") -> "torch.Tensor":
        """Return pixels with these constants as they would be with others. Each patch has its colours one by one."""
        shape = (1, len(self.mean), 1)
        mean, std, other_mean, other_std = (
            pixel_values.new_tensor(values).reshape(shape) for values in (self.mean, self.std, other.mean, other.std)
        )
        patches = pixel_values.reshape(len(pixel_values), len(self.mean), -1)
        return ((patches * std + mean - other_mean) / other_std).reshape(pixel_values.shape)


_KNOWN = (
    Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # such as Qwen3-VL
    Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # such as Qwen2.5-VL
)
