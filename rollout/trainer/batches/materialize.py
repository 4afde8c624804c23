"""Makes pixels from raw descriptors, just before the forward pass.

    materializer = Materializer.from_pretrained(checkpoint)
    batch = batch_of(groups, materializer=materializer)
    model(**batch.model_inputs())

Each image is checked: its layout must be that of the checkpoint, its bytes must have its hash, and its patches must
fill its placeholder. Otherwise, an error names the rollout, the node and the file.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from renderers_adapter.creation import load_processor_config
from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY, shared_decoding_memory
from renderers_adapter.descriptors import RawMMItem, parse_raw_mm_item
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import Placeholder
from rollout.errors import ConfigurationError, RolloutError
from rollout.images import AssetError, ImageError, decode_data_uri, decoded_image, read_asset
from rollout.images.policy import WIDEST_LIMITS
from rollout.images.processors import (
    PixelKind,
    ProcessedImage,
    ResizeBackend,
    family_of_checkpoint,
    image_processor_for,
    import_trainer_extra,
    installed_backend,
    patch_count,
)
from rollout.images.single_flight import SingleFlightCache
from rollout.trainer.batches.samples import TrainingSample

DEFAULT_CACHE_BYTES = 256 * 1024 * 1024
_PATCH_COPIES = 3
"""The measured peak memory of transformers' image processors, divided by the size of the patches as float32."""


class MaterializeError(RolloutError):
    """An image of a sample is missing, has the wrong bytes or layout, or does not fit its placeholder.

    Attributes:
        reason: what is wrong.
        rollout: the id of the sample's rollout.
        node: the index of the last node of the sample's branch.
        file: the name of the image file, or the first characters of its data URI.
    """

    def __init__(self, reason: str, *, rollout: str, node: int, file: str) -> None:
        self.reason = reason
        self.rollout = rollout
        self.node = node
        self.file = file
        super().__init__(f"rollout {rollout}, branch of node {node}, image {file}: {reason}")


class Materializer:
    """Makes the pixel inputs of training samples. It is thread-safe.

    It can be pickled, so that the processes of a data loader can make the pixels. The cache is not pickled with it.

    Args:
        family: the model family that defines the geometry, such as `qwen_vl`.
        processor_config: the processor configuration of the checkpoint that is trained. `from_pretrained` reads it.
        images: the directory with the image files of all samples. None: each sample names its directory.
        backend: the library that resizes images; it must be the one that the engine uses.
        pixels: `normalised` for pixels as the model needs them, or `uint8` for pixels that are not normalised yet.
        cache_bytes: the maximum bytes of patches to keep for later samples, such as those of the same group.
        memory: the maximum bytes that this process may use to decode and process images.
    """

    def __init__(
        self,
        family: str,
        processor_config: Mapping[str, Any],
        *,
        images: Path | str | None = None,
        backend: ResizeBackend,
        pixels: PixelKind = "normalised",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        memory: int = DEFAULT_DECODING_MEMORY,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "images": images,
            "backend": backend,
            "pixels": pixels,
            "cache_bytes": cache_bytes,
            "memory": memory,
        }
        self._processor = image_processor_for(family, processor_config, backend=backend, pixels=pixels)
        self._images = images
        self._memory = shared_decoding_memory(memory)
        self._cache = SingleFlightCache[ProcessedImage](cache_bytes, lambda processed: processed.patches.nbytes)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        *,
        family: str | None = None,
        images: Path | str | None = None,
        backend: ResizeBackend | None = None,
        pixels: PixelKind = "normalised",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        memory: int = DEFAULT_DECODING_MEMORY,
    ) -> Self:
        """Return the materializer for a checkpoint with images. A text-only checkpoint needs none, and is refused.

        Args:
            checkpoint: the directory of the checkpoint that is trained.
            family: the family of its images, such as `qwen_vl`. None: the one that belongs to the `model_type` in the
                checkpoint's `config.json`.
            images: the directory with the image files of all samples, if it is mounted under another path here than on
                the workers. None: each sample names its directory.
            backend: the library that resizes images; it must be the one that the engine uses. None: torchvision if it
                is installed, because vLLM then uses it too; Pillow otherwise.
            pixels: `normalised` for pixels as the model needs them, or `uint8` for pixels that are not normalised yet.
            cache_bytes: the maximum bytes of patches to keep for later samples, such as those of the same group.
            memory: the maximum bytes that this process may use to decode and process images.

        Raises:
            ConfigurationError: no family is known for the checkpoint, torchvision is installed but broken, or the
                checkpoint is the name of a built-in model, which has no weights.
            AdapterError: the configuration of the checkpoint's image processor is missing or invalid.
        """
        if str(checkpoint).startswith("builtin:"):
            raise ConfigurationError(
                f"{checkpoint} is the name of a model without weights, so it is no checkpoint, and no trainer can "
                "train it. Give the directory of a checkpoint, and play the run with the same directory as model.path. "
                "`python -m rollout.serving.tiny_model DIRECTORY` makes a small one."
            )
        directory = Path(checkpoint)
        return cls(
            family or family_of_checkpoint(directory),
            load_processor_config(directory),
            images=images,
            backend=backend or installed_backend(),
            pixels=pixels,
            cache_bytes=cache_bytes,
            memory=memory,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self._processor.family, self._processor.config, **self._arguments), ()

    @property
    def position_axes(self) -> int:
        """The number of positions that the model needs for each token: 1, or 3 for time, height and width."""
        return self._processor.position_axes

    def positions(self, sample: TrainingSample) -> npt.NDArray[np.int64]:
        """Return the positions of a sample's tokens, as an array of the shape (`position_axes`, tokens).

        Raises:
            MaterializeError: the descriptor of an image does not fit the sample or the checkpoint.
        """
        grids = [
            self._checked_grid(sample, placeholder, descriptor)
            for placeholder, descriptor in zip(sample.placeholders, sample.images, strict=True)
        ]
        ranges = [(placeholder.offset, placeholder.length) for placeholder in sample.placeholders]
        return self._processor.positions(len(sample.token_ids), ranges, grids)

    def inputs(self, samples: Sequence[TrainingSample]) -> dict[str, Any]:
        """Return `pixel_values` and the grids of all images of these samples, in order, as torch tensors.

        The result is empty if the samples have no images.

        Raises:
            MaterializeError: an image does not fit the sample.
            ConfigurationError: torch, transformers or the backend is not installed.
        """
        image_inputs = [
            (sample, placeholder, self._checked_grid(sample, placeholder, descriptor), descriptor)
            for sample in samples
            for placeholder, descriptor in zip(sample.placeholders, sample.images, strict=True)
        ]
        if not image_inputs:
            return {}
        torch = import_trainer_extra("torch")
        grids = [grid for _, _, grid, _ in image_inputs]
        total_patches = sum(map(patch_count, grids))
        # Fill one array image by image, because concatenating the images would take twice the memory.
        pixel_values = np.empty((total_patches, *self._processor.patch_shape()), self._processor.dtype)
        filled_patches = 0
        for sample, placeholder, grid, image in image_inputs:
            processed = self._process_image(sample, placeholder, image, grid)
            if processed.grid != grid:
                raise _mismatch_error(
                    sample, image, f"its descriptor has the grid {grid}, but its pixels have the grid {processed.grid}"
                )
            pixel_values[filled_patches : filled_patches + len(processed.patches)] = processed.patches
            filled_patches += len(processed.patches)
        return {
            "pixel_values": torch.from_numpy(pixel_values),
            self._processor.grid_input: torch.tensor(grids, dtype=torch.int64),
        }

    def _checked_grid(
        self, sample: TrainingSample, placeholder: Placeholder, descriptor: Mapping[str, Any]
    ) -> tuple[int, int, int]:
        """Return the grid of a descriptor after it was compared with the checkpoint and the placeholder."""
        geometry = self._processor.geometry
        try:
            item = parse_raw_mm_item(descriptor)
            if (item.family, item.layout_fingerprint) != (geometry.family, geometry.fingerprint):
                raise _mismatch_error(
                    sample,
                    descriptor,
                    f"its layout fingerprint is {item.family} {item.layout_fingerprint}, but the processor "
                    f"configuration of this checkpoint has {geometry.family} {geometry.fingerprint}. The run was "
                    "played with another model.path. Play it with this checkpoint as model.path, so that both sides "
                    "give an image the same tokens.",
                )
            if item.raw_image_id is not None and not item.raw_image_id.startswith(placeholder.hash):
                raise _mismatch_error(sample, descriptor, f"its placeholder is for the image {placeholder.hash}")
            grid = geometry.grid(item.payload)
        except AdapterError as error:
            raise _mismatch_error(sample, descriptor, str(error)) from error
        if geometry.tokens(grid) != placeholder.length:
            raise _mismatch_error(
                sample,
                descriptor,
                f"its grid {grid} has {geometry.tokens(grid)} tokens, but its placeholder has {placeholder.length}",
            )
        return grid

    def _process_image(
        self,
        sample: TrainingSample,
        placeholder: Placeholder,
        descriptor: Mapping[str, Any],
        grid: tuple[int, int, int],
    ) -> ProcessedImage:
        """Return the patches of an image from the cache, or read and process the image."""

        def read_and_process() -> ProcessedImage:
            data = self._read_image(sample, parse_raw_mm_item(descriptor))
            if hashlib.sha256(data).hexdigest()[: len(placeholder.hash)] != placeholder.hash:
                raise ImageError(f"its bytes do not have the hash {placeholder.hash}")
            processing_bytes = _PATCH_COPIES * patch_count(grid) * math.prod(self._processor.patch_shape()) * 4
            with decoded_image(
                data,
                WIDEST_LIMITS,
                self._memory,
                processing_bytes=processing_bytes,
                limit_name="Materializer(memory=…)",
            ) as pixels:
                return self._processor.process(pixels)

        try:
            return self._cache.get(placeholder.hash, read_and_process)
        except (AssetError, ImageError) as error:
            raise _mismatch_error(sample, descriptor, error.reason) from error
        except AdapterError as error:
            raise _mismatch_error(sample, descriptor, str(error)) from error

    def _read_image(self, sample: TrainingSample, item: RawMMItem) -> bytes:
        if item.raw_image_id is not None:
            directory = sample.image_directory if self._images is None else self._images
            return read_asset(Path(directory), item.raw_image_id)
        assert item.raw_uri is not None
        return decode_data_uri(item.raw_uri, WIDEST_LIMITS.max_bytes)


def _mismatch_error(sample: TrainingSample, descriptor: Mapping[str, Any], reason: str) -> MaterializeError:
    file = str(descriptor.get("raw_image_id") or str(descriptor.get("raw_uri"))[:40])
    return MaterializeError(reason, rollout=sample.rollout, node=sample.leaf, file=file)
