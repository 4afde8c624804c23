"""What a server demands of images, learnt from its processor and two images when it starts."""

import io
import os
from typing import Any

from PIL import Image

from .contract.geometry import Geometry, GeometryError, geometry_for
from .errors import InvalidImageRef, MaterialisationFailed
from .files import ImageFiles
from .image_config import ServerFacts
from .processing import Pipeline, VLLMProcessor, make_item
from .tensors import ItemPattern

_FAMILIES = (("image", "qwen_vl"), ("vision_chunk", "kimi_k25"))
_PROBES = ((320, 200), (70, 530))


async def discover(renderer: Any) -> tuple[ServerFacts, VLLMProcessor] | str:
    """The facts and the processor of a server, or why no reference can be resolved there."""
    config = renderer.model_config
    if renderer.mm_processor is None:
        return "the model takes no images"
    info = renderer.get_mm_processor().info
    pad_id = getattr(config.hf_config, "image_token_id", None)
    why = "it has another modality than images, or no token for them"
    for modality, family in _FAMILIES:
        most = info.allowed_mm_limits.get(modality, 0)
        if not most or pad_id is None:
            continue
        try:
            geometry = geometry_for(family, _processor_config(info))
            pipeline = Pipeline(renderer, modality, pad_id)
            pattern = await _pattern(pipeline, geometry)
        except (GeometryError, InvalidImageRef, MaterialisationFailed) as error:
            why = f"it is not of the family {family}: {error}"
            continue
        facts = ServerFacts(modality, geometry, pad_id, _files(config.allowed_local_media_path), most)
        return facts, VLLMProcessor(pipeline, pattern)
    return f"no geometry explains the model's image processor: {why}"


async def _pattern(pipeline: Pipeline, geometry: Geometry) -> ItemPattern:
    patterns = []
    for width, height in _PROBES:
        item, _ = await make_item(pipeline, pipeline.load(_probe(width, height)), f"{width}x{height}", geometry)
        patterns.append(ItemPattern.of(item, geometry))
    if patterns[0] != patterns[1]:
        raise MaterialisationFailed("the items of two images have nothing in common")
    return patterns[0]


def _files(directory: str) -> ImageFiles | None:
    return ImageFiles(os.path.realpath(directory)) if directory else None


def _probe(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (127, 63, 31)).save(buffer, "PNG")
    return buffer.getvalue()


def _processor_config(info: Any) -> dict[str, Any]:
    # A family's own processor, with everything that --mm-processor-kwargs changed about it.
    found = info.image_processor if hasattr(info, "image_processor") else info.get_image_processor()
    return dict(found.to_dict())
