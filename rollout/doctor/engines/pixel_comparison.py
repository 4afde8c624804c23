"""Compares the patches that the trainer and the engine make of probe images, as 8-bit values before normalisation.

    comparison = await compare_pixels(
        transport, url, model="tiny", config=load_processor_config(checkpoint), family="qwen_vl"
    )
    comparison.matching_backend      # the backend to give to the Materializer, or None

The engine's render route returns the tensors that its processor makes. Since 0.32, vLLM normalises them later, on the
device, where nothing can be compared. Our tensors come from the code that the Materializer uses. Implementations mostly
differ in how they treat sizes, orientations, transparency and palettes.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import anyio.to_thread
import msgpack  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import orjson
from PIL import Image

from renderers_adapter.geometry import geometry_for
from rollout.engine.errors import EngineError, EngineMismatch
from rollout.engine.features import vllm_modality_of
from rollout.engine.transport import EngineTransport
from rollout.errors import ConfigurationError
from rollout.images import load_pixels
from rollout.images.processors import ImageProcessor, ResizeBackend, image_processor_for

_EXIF_ORIENTATION_TAG = 0x0112
_PROBE_SIZES = {"enlarged": (30, 20), "even": (384, 256), "odd": (333, 517), "shrunk": (1039, 1301), "thin": (1900, 40)}


class NormalisedPatches(EngineError):
    """The engine gives patches that are normalised already, so their 8-bit values cannot be compared."""


@dataclass(frozen=True, slots=True)
class ProbeImage:
    """An image that the engine and the trainer may process differently.

    Attributes:
        name: what is special about the image.
        media_type: the type of its file.
        data: the bytes of its file.
    """

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PixelDifference:
    """The difference between the engine's patches and the trainer's patches of one probe image.

    Attributes:
        probe: the name of the probe image.
        backend: the resize backend of the trainer.
        value_count: the number of values in the engine's patches.
        different_count: the number of values that differ; all of them if the shapes differ.
        largest_difference: the largest difference between two values, from 0 to 255.
    """

    probe: str
    backend: ResizeBackend
    value_count: int
    different_count: int
    largest_difference: int

    @property
    def identical(self) -> bool:
        """Whether all values are equal."""
        return self.different_count == 0


@dataclass(frozen=True, slots=True)
class PixelComparison:
    """The result of the comparison.

    Attributes:
        differences: one entry for each probe image and each backend.
        unavailable_backends: the reason for each backend that cannot be used here.
    """

    differences: tuple[PixelDifference, ...]
    unavailable_backends: Mapping[ResizeBackend, str]

    @property
    def matching_backend(self) -> ResizeBackend | None:
        """The first backend that makes the same patches as the engine of all probe images; None if there is none."""
        backends = dict.fromkeys(difference.backend for difference in self.differences)
        return next(
            (
                backend
                for backend in backends
                if all(difference.identical for difference in self.differences if difference.backend == backend)
            ),
            None,
        )

    def summary(self) -> str:
        """Return the result as text, with one line for each backend, and a line that says what was not compared."""
        probe_count = len({difference.probe for difference in self.differences})
        lines = (
            []
            if self.matching_backend is None
            else [
                f"the engine and {self.matching_backend} make the same patches of {probe_count} probe images: 8-bit "
                "values before normalisation, equal bit for bit",
                "the normalisation, and what the network makes of it, are compared by --forward alone",
            ]
        )
        for backend in dict.fromkeys(difference.backend for difference in self.differences):
            mismatches = [
                difference
                for difference in self.differences
                if difference.backend == backend and not difference.identical
            ]
            if mismatches:
                worst = max(mismatches, key=lambda difference: difference.largest_difference)
                lines.append(
                    f"{backend} makes other patches of {', '.join(d.probe for d in mismatches)}. The largest "
                    f"difference is {worst.largest_difference} of 255, in {worst.probe}, where {worst.different_count} "
                    f"of {worst.value_count} values differ"
                )
        lines += [f"{backend} was not compared: {reason}" for backend, reason in self.unavailable_backends.items()]
        return "\n".join(lines)


def probe_images() -> tuple[ProbeImage, ...]:
    """Return probe images of noise, because every resampling changes noise.

    They have five sizes, eight orientations, transparency and palettes.
    """
    images = [_png_probe(name, _noise_image(*size, "RGB")) for name, size in _PROBE_SIZES.items()]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION_TAG] = orientation
        file = io.BytesIO()
        _noise_image(150, 97, "RGB").save(file, "JPEG", quality=95, exif=exif)
        images.append(ProbeImage(f"orientation {orientation}", "image/jpeg", file.getvalue()))
    images.append(_png_probe("RGBA", _noise_image(130, 210, "RGBA")))
    images.append(_png_probe("palette", _noise_image(130, 210, "RGB").quantize(64)))
    images.append(_png_probe("transparent palette", _noise_image(130, 210, "RGB").quantize(64), transparency=7))
    images.append(_png_probe("grey", _noise_image(130, 210, "L")))
    return tuple(images)


async def compare_pixels(
    transport: EngineTransport, url: str, *, model: str, config: Mapping[str, Any], family: str
) -> PixelComparison:
    """Compare every probe image with every backend that is installed, and return the comparison.

    Raises:
        EngineError: the engine has no render route, or answers in an unknown form.
        NormalisedPatches: the engine normalises the patches itself, as vLLM before 0.32.
        ConfigurationError: no image processor is known for the family.
    """
    processors: dict[ResizeBackend, ImageProcessor] = {}
    unavailable_backends: dict[ResizeBackend, str] = {}
    blank_image = Image.new("RGB", (64, 64))
    for backend in get_args(ResizeBackend):
        processor = image_processor_for(family, config, backend=backend, pixels="uint8")
        try:
            await anyio.to_thread.run_sync(processor.process, blank_image)
        except ConfigurationError as error:
            unavailable_backends[backend] = str(error)
        else:
            processors[backend] = processor
    differences = []
    for probe in probe_images() if processors else ():
        engine_patches = await _fetch_engine_patches(
            transport, url, model, probe, vllm_modality_of(geometry_for(family, config))
        )
        pixels = await anyio.to_thread.run_sync(load_pixels, probe.data)
        for backend, processor in processors.items():
            processed = await anyio.to_thread.run_sync(processor.process, pixels)
            differences.append(_measure_difference(probe.name, backend, processed.patches, engine_patches))
    return PixelComparison(tuple(differences), unavailable_backends)


async def _fetch_engine_patches(
    transport: EngineTransport, url: str, model: str, probe: ProbeImage, modality: str
) -> npt.NDArray[np.uint8]:
    uri = f"data:{probe.media_type};base64,{base64.b64encode(probe.data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    request_body = {"model": model, "messages": [{"role": "user", "content": content}]}
    answer = await transport.post(f"{url}/v1/chat/completions/render", orjson.dumps(request_body))
    try:
        (item,) = orjson.loads(answer)["features"]["kwargs_data"][modality]
        dtype, shape, data = msgpack.unpackb(base64.b64decode(item))["pixel_values"]["data"]
        patches = np.frombuffer(data.data, dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineMismatch(f"{url} renders the probe {probe.name} in an unknown form ({error!r}).") from None
    if patches.dtype != np.uint8:
        raise NormalisedPatches(
            f"{url} renders {patches.dtype} values, which are normalised already. Only 8-bit values before "
            "normalisation are compared; use vLLM 0.32 or newer, which normalises on the device."
        )
    return patches


def _measure_difference(
    probe: str, backend: ResizeBackend, trainer_patches: npt.NDArray[np.uint8], engine_patches: npt.NDArray[np.uint8]
) -> PixelDifference:
    if trainer_patches.shape != engine_patches.shape:
        return PixelDifference(probe, backend, engine_patches.size, engine_patches.size, 255)
    distance = np.abs(trainer_patches.astype(np.int16) - engine_patches.astype(np.int16))
    return PixelDifference(probe, backend, engine_patches.size, int(np.count_nonzero(distance)), int(distance.max()))


def _noise_image(width: int, height: int, mode: str) -> Image.Image:
    channels = Image.new(mode, (1, 1)).getbands()
    values = np.random.default_rng(width).integers(0, 256, (height, width, len(channels)), np.uint8)
    return Image.fromarray(values.squeeze())


def _png_probe(name: str, image: Image.Image, **save_options: Any) -> ProbeImage:
    file = io.BytesIO()
    image.save(file, "PNG", **save_options)
    return ProbeImage(name, "image/png", file.getvalue())
