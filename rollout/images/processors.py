"""Makes the patches of an image for the trainer, as the image processor of the model's family does.

The caller names the resize backend; the checkpoint's configuration decides everything else. Two backends differ in the
last bit of many pixels, so the trainer must use the engine's backend. There is no fallback to another backend.
A family also says which positions its models need.

A package can add a family with an entry point in the group `rollout.image_processors`. The name of the entry point is
the family, and its object is a subclass of `ImageProcessor`.
"""

import importlib
import importlib.util
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.geometry.kimi_k25 import KimiK25Geometry
from rollout.errors import ConfigurationError
from rollout.images.rope import rope_positions

ENTRY_POINT_GROUP = "rollout.image_processors"

ResizeBackend = Literal["pil", "torchvision"]
"""The library that resizes images: Pillow or torchvision."""
PixelKind = Literal["normalised", "uint8"]
"""The values in patches: `normalised` for the model, or `uint8` (0 to 255) for an engine that normalises itself."""


@dataclass(frozen=True, slots=True)
class ProcessedImage:
    """One image in the form that the vision tower of a model takes.

    Attributes:
        patches: one row for each patch, with the shape `ImageProcessor.patch_shape`; float32 or uint8.
        grid: the number of patches in time, height and width.
    """

    patches: npt.NDArray[Any]
    grid: tuple[int, int, int]


class ImageProcessor(ABC):
    """Makes patches as the image processor of one checkpoint does.

    Attributes:
        family: the name of the processor's geometry family.
        model_types: the `model_type` of the family's checkpoints, in their `config.json`.
        position_axes: the number of positions that the models need for each token: 1, or 3 for time, height and width.
        grid_input: the name of the model's input for the grids.
        config: the configuration of the image processor, from the checkpoint.
        backend: the library that resizes the images.
        pixels: whether the patches are `normalised`, or `uint8`, which means not rescaled and not normalised.
        geometry: the geometry of the family with this configuration.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    position_axes: ClassVar[int] = 1
    grid_input: ClassVar[str] = "image_grid_thw"

    def __init__(self, config: Mapping[str, Any], *, backend: ResizeBackend, pixels: PixelKind) -> None:
        self.config = config.get("image_processor", config)
        self.backend = backend
        self.pixels = pixels
        self.geometry: Geometry = geometry_for(self.family, config)

    @abstractmethod
    def process(self, image: Image.Image) -> ProcessedImage:
        """Return the patches of an upright RGB image."""

    @abstractmethod
    def patch_shape(self) -> tuple[int, ...]:
        """Return the shape of one patch in `ProcessedImage.patches`."""

    def positions(
        self, length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]]
    ) -> npt.NDArray[np.int64]:
        """Return the positions of the tokens of one sample, as an array of the shape (`position_axes`, `length`).

        Args:
            length: the number of tokens.
            placeholders: the first token and the number of tokens of each image, in order.
            grids: the number of patches of each image in time, height and width.
        """
        return np.arange(length)[None]

    @property
    def dtype(self) -> type[np.float32] | type[np.uint8]:
        """The numpy type of the values in patches."""
        return np.uint8 if self.pixels == "uint8" else np.float32

    def _run_transformers(self, processor: Any, image: Image.Image) -> ProcessedImage:
        options = {"do_rescale": False, "do_normalize": False} if self.pixels == "uint8" else {}
        outputs = processor(images=[image], return_tensors="np", **options)
        t, h, w = (int(side) for side in np.asarray(outputs["image_grid_thw"])[0])
        # Values that are not normalised are integers from 0 to 255, but a backend may use another type for them.
        return ProcessedImage(np.asarray(outputs["pixel_values"]).astype(self.dtype, copy=False), (t, h, w))


class QwenVLImageProcessor(ImageProcessor):
    """The image processor of the Qwen-VL families, from transformers. Every patch is a flat row of numbers."""

    family = "qwen_vl"
    model_types: ClassVar[tuple[str, ...]] = (
        *("qwen2_vl", "qwen2_5_vl"),
        *("qwen3_vl", "qwen3_vl_moe"),
        *("qwen3_5", "qwen3_5_moe"),
    )
    position_axes = 3

    @cached_property
    def _processor(self) -> Any:
        name = "Qwen2VLImageProcessorPil" if self.backend == "pil" else "Qwen2VLImageProcessor"
        module = "image_processing_pil_qwen2_vl" if self.backend == "pil" else "image_processing_qwen2_vl"
        return _load_transformers_processor(f"qwen2_vl.{module}", name, self.config)

    def process(self, image: Image.Image) -> ProcessedImage:
        """See `ImageProcessor.process`."""
        return self._run_transformers(self._processor, image)

    def patch_shape(self) -> tuple[int, ...]:
        """See `ImageProcessor.patch_shape`."""
        knobs = self.geometry.knobs
        return (3 * knobs["temporal_patch_size"] * knobs["patch_size"] ** 2,)

    def positions(
        self, length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]]
    ) -> npt.NDArray[np.int64]:
        """See `ImageProcessor.positions`."""
        return rope_positions(length, placeholders, grids, self.geometry.knobs["merge_size"])


class KimiK25ImageProcessor(ImageProcessor):
    """The image processor of Kimi K2.5. `torchvision` uses transformers; `pil` computes as the engine does."""

    family = "kimi_k25"
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)

    @property
    def _kimi_geometry(self) -> KimiK25Geometry:
        assert isinstance(self.geometry, KimiK25Geometry)
        return self.geometry

    @cached_property
    def _processor(self) -> Any:
        geometry = self._kimi_geometry
        config = {
            "patch_size": geometry.patch_size,
            "merge_size": geometry.merge_kernel_size,
            "max_patches": geometry.in_patch_limit,
            "size": {"max_height": geometry.patch_limit_on_one_side, "max_width": geometry.patch_limit_on_one_side},
            "image_mean": list(geometry.image_mean),
            "image_std": list(geometry.image_std),
        }
        return _load_transformers_processor("kimi_k25.image_processing_kimi_k25", "Kimi_K25ImageProcessor", config)

    @cached_property
    def _normalised_levels(self) -> npt.NDArray[np.float32]:
        """The normalised values of the 256 colour levels, as an array of the shape (level, colour)."""
        mean = np.asarray(self._kimi_geometry.image_mean, np.float32)
        inverse_std = 1.0 / np.asarray(self._kimi_geometry.image_std, np.float32)
        levels = np.arange(256, dtype=np.float32)[:, None]
        normalised: npt.NDArray[np.float32] = (levels / 255.0 - mean) * inverse_std
        return normalised

    def process(self, image: Image.Image) -> ProcessedImage:
        """See `ImageProcessor.process`."""
        if self.backend == "torchvision":
            return self._run_transformers(self._processor, image)
        patch_size, (width, height) = (
            self._kimi_geometry.patch_size,
            self._kimi_geometry.resized(width=image.width, height=image.height),
        )
        grid = self._kimi_geometry.layout(width=image.width, height=image.height).grid
        _, rows, columns = grid
        canvas = np.zeros((rows * patch_size, columns * patch_size, 3), np.uint8)
        canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        patches = (
            canvas.reshape(rows, patch_size, columns, patch_size, 3)
            .transpose(0, 2, 4, 1, 3)
            .reshape(-1, 3, patch_size, patch_size)
        )
        if self.pixels == "uint8":
            return ProcessedImage(patches, grid)
        normalised = np.empty(patches.shape, np.float32)
        for colour in range(3):
            normalised[:, colour] = self._normalised_levels[patches[:, colour], colour]
        return ProcessedImage(normalised, grid)

    def patch_shape(self) -> tuple[int, ...]:
        """See `ImageProcessor.patch_shape`."""
        return (3, self._kimi_geometry.patch_size, self._kimi_geometry.patch_size)


_BUILT_IN_PROCESSORS: Mapping[str, type[ImageProcessor]] = {
    processor.family: processor for processor in (QwenVLImageProcessor, KimiK25ImageProcessor)
}


def image_processor_for(
    family: str, config: Mapping[str, Any], *, backend: ResizeBackend, pixels: PixelKind
) -> ImageProcessor:
    """Return the image processor of a family with a checkpoint's configuration.

    Raises:
        ConfigurationError: no image processor is known for the family.
        GeometryError: a setting is missing in the configuration.
    """
    processor_class = _BUILT_IN_PROCESSORS.get(family)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=family) if processor_class is None else ():
        processor_class = entry_point.load()
    if processor_class is None:
        raise ConfigurationError(
            f"no image processor is known for the family {family!r} (built in: {', '.join(_BUILT_IN_PROCESSORS)}); "
            f"install a package that adds one by an entry point in the group {ENTRY_POINT_GROUP}"
        )
    return processor_class(config, backend=backend, pixels=pixels)


def family_of_checkpoint(directory: Path) -> str:
    """Return the family of the image processor that belongs to a checkpoint's `model_type`.

    Raises:
        ConfigurationError: the directory has no valid `config.json`, or no family is known for its `model_type`.
    """
    path = directory / "config.json"
    try:
        model_type = json.loads(path.read_text("utf-8"))["model_type"]
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}. Give the directory of a checkpoint that save_pretrained() wrote."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not a JSON object with the key model_type. Copy it from the checkpoint again."
        ) from error
    processor_classes = dict(_BUILT_IN_PROCESSORS)
    if not any(model_type in processor_class.model_types for processor_class in processor_classes.values()):
        processor_classes |= {point.name: point.load() for point in entry_points(group=ENTRY_POINT_GROUP)}
    for family, processor_class in processor_classes.items():
        if model_type in processor_class.model_types:
            return family
    known = [name for processor_class in processor_classes.values() for name in processor_class.model_types]
    raise ConfigurationError(
        f"{path} has the model_type {model_type!r}, but images are known only for {', '.join(known)}. A text-only "
        "model needs no materializer. For another model with images, name its family: one of "
        f"{', '.join(processor_classes)}."
    )


def installed_backend() -> ResizeBackend:
    """Return `torchvision` if it is installed, because vLLM's processors then use it too; `pil` otherwise.

    Raises:
        ConfigurationError: torchvision is installed, but cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "pil"
    try:
        importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:
        raise ConfigurationError(
            f"torchvision is installed, but cannot be imported ({str(error).strip()[:200]}). Install the version that "
            "belongs to your torch, from the same index, or name the backend that the engine uses, such as "
            "backend='pil'."
        ) from error
    return "torchvision"


def patch_count(grid: tuple[int, int, int]) -> int:
    """Return the number of patches of an image with this grid."""
    return math.prod(grid)


def import_trainer_extra(module: str) -> Any:
    """Import and return a module that the extra `trainer` installs.

    Raises:
        ConfigurationError: the module is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as error:  # the operators of torchvision belong to another build of torch
        raise ConfigurationError(
            f"{module} cannot be imported ({str(error).strip()[:200]}). Install torch and torchvision again, together "
            "and from the same index, so that they are builds for the same device."
        ) from error
    except ImportError as error:
        raise ConfigurationError(
            f"{module} cannot be imported ({str(error).strip()[:200]}). Install it: pip install 'rollout-rl[trainer]'"
        ) from error


def _load_transformers_processor(module: str, class_name: str, config: Mapping[str, Any]) -> Any:
    transformers_module = import_trainer_extra(f"transformers.models.{module}")
    try:
        return getattr(transformers_module, class_name).from_dict(dict(config))
    except ImportError as error:  # transformers raises it only here if the backend of the class is not installed
        raise ConfigurationError(
            f"the image processor {class_name} cannot be created ({str(error).strip()[:200]}). Install what it needs: "
            "pip install 'rollout-rl[trainer]'"
        ) from error
