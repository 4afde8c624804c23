"""Are the trainer's pixels the engine's? Proven with probe images, bit for bit, as patches before normalisation.

    report = await compare(engine_http, url, model="tiny", config=load_processor_config(checkpoint), family="qwen_vl")
    report.proven                    # the backend to give to the Materializer, or None

The engine's render endpoint tells the exact tensors that its network would be fed; ours come through the very code of
the Materializer. Sizes, orientations, transparency and palettes are where two implementations part.
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
from rollout.engine.errors import EngineMismatch
from rollout.engine.features import modality_of
from rollout.engine.http import EngineHttp
from rollout.errors import ConfigurationError
from rollout.images import load_pixels
from rollout.images.processors import Backend, ImageProcessor, image_processor_for

_ORIENTATION = 0x0112
_SIZES = {"enlarged": (30, 20), "even": (384, 256), "odd": (333, 517), "shrunk": (1039, 1301), "thin": (1900, 40)}


@dataclass(frozen=True, slots=True)
class Probe:
    """An image that one side could see otherwise than the other."""

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sides' patches of one probe. `differing` of `values` differ, by `largest` of 255 levels at most."""

    probe: str
    backend: Backend
    values: int
    differing: int
    largest: int

    @property
    def equal(self) -> bool:
        """Whether not one bit differs."""
        return self.differing == 0


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared; `absent` says which backends are not installed here, and why."""

    differences: tuple[Difference, ...]
    absent: Mapping[Backend, str]

    @property
    def proven(self) -> Backend | None:
        """The backend whose every patch is the engine's."""
        tried = dict.fromkeys(difference.backend for difference in self.differences)
        return next((one for one in tried if all(d.equal for d in self.differences if d.backend == one)), None)

    def told(self) -> str:
        """Which side resizes with what, in a line for each backend."""
        lines = [] if self.proven is None else [f"the engine resizes as {self.proven} does: not one bit differs"]
        for backend in dict.fromkeys(difference.backend for difference in self.differences):
            wrong = [d for d in self.differences if d.backend == backend and not d.equal]
            if wrong:
                worst = max(wrong, key=lambda difference: difference.largest)
                lines.append(
                    f"the trainer with {backend} would not: {', '.join(d.probe for d in wrong)} differ, by up to"
                    f" {worst.largest} of 255 ({worst.differing} of {worst.values} values of {worst.probe})"
                )
        lines += [f"{backend} was not compared: {why}" for backend, why in self.absent.items()]
        return "\n".join(lines)


def probes() -> tuple[Probe, ...]:
    """Noise, so that every resampling shows: in five sizes, eight orientations, with transparency and palettes."""
    found = [_png(name, _noise(*size, "RGB")) for name, size in _SIZES.items()]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        file = io.BytesIO()
        _noise(150, 97, "RGB").save(file, "JPEG", quality=95, exif=exif)
        found.append(Probe(f"orientation {orientation}", "image/jpeg", file.getvalue()))
    found.append(_png("RGBA", _noise(130, 210, "RGBA")))
    found.append(_png("palette", _noise(130, 210, "RGB").quantize(64)))
    found.append(_png("transparent palette", _noise(130, 210, "RGB").quantize(64), transparency=7))
    found.append(_png("grey", _noise(130, 210, "L")))
    return tuple(found)


async def compare(http: EngineHttp, url: str, *, model: str, config: Mapping[str, Any], family: str) -> Parity:
    """Compare every probe with every backend that is installed.

    Raises:
        EngineError: the engine does not render, or renders something else.
        ConfigurationError: no image processor is known for the family.
    """
    processors: dict[Backend, ImageProcessor] = {}
    absent: dict[Backend, str] = {}
    small = Image.new("RGB", (64, 64))
    for backend in get_args(Backend):
        processor = image_processor_for(family, config, backend=backend, pixels="uint8")
        try:
            await anyio.to_thread.run_sync(processor.process, small)
        except ConfigurationError as error:
            absent[backend] = str(error)
        else:
            processors[backend] = processor
    differences = []
    for probe in probes() if processors else ():
        theirs = await _engines(http, url, model, probe, modality_of(geometry_for(family, config)))
        pixels = await anyio.to_thread.run_sync(load_pixels, probe.data)
        for backend, processor in processors.items():
            ours = await anyio.to_thread.run_sync(processor.process, pixels)
            differences.append(_difference(probe.name, backend, ours.patches, theirs))
    return Parity(tuple(differences), absent)


async def _engines(http: EngineHttp, url: str, model: str, probe: Probe, modality: str) -> npt.NDArray[np.uint8]:
    uri = f"data:{probe.media_type};base64,{base64.b64encode(probe.data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    asked = {"model": model, "messages": [{"role": "user", "content": content}]}
    answer = await http.post(f"{url}/v1/chat/completions/render", orjson.dumps(asked))
    try:
        (item,) = orjson.loads(answer)["features"]["kwargs_data"][modality]
        dtype, shape, data = msgpack.unpackb(base64.b64decode(item))["pixel_values"]["data"]
        values = np.frombuffer(data.data, dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineMismatch(f"{url} renders the probe {probe.name} in a form that is not known ({error!r}).") from None
    if values.dtype != np.uint8:
        raise EngineMismatch(
            f"{url} renders {values.dtype} pixels: it normalises before its network, where no two sides compare bit for"
            " bit. vLLM 0.32 and newer normalises on the device."
        )
    return values


def _difference(probe: str, backend: Backend, ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> Difference:
    if ours.shape != theirs.shape:
        return Difference(probe, backend, theirs.size, theirs.size, 255)
    distance = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    return Difference(probe, backend, theirs.size, int(np.count_nonzero(distance)), int(distance.max()))


def _noise(width: int, height: int, mode: str) -> Image.Image:
    channels = Image.new(mode, (1, 1)).getbands()
    values = np.random.default_rng(width).integers(0, 256, (height, width, len(channels)), np.uint8)
    return Image.fromarray(values.squeeze())


def _png(name: str, image: Image.Image, **options: Any) -> Probe:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return Probe(name, "image/png", file.getvalue())
