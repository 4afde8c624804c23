"""What a server demands of images, learnt from its processor and two images when it starts."""

import io
import os
from typing import Any

from PIL import Image

from .contract.geometry import Geometry, GeometryError, geometry_for
from .errors import InvalidImageRef, MaterialisationFailed
from .files import ImageFiles
from .image_config import ServerImageConfig
from .processing import ImagePipeline, VLLMProcessor, make_image_item, memory_from_environment
from .tensors import ItemSchema

_MODALITY_FAMILIES = (("image", "qwen_vl"), ("vision_chunk", "kimi_k25"))
_PROBE_SIZES = ((320, 200), (70, 530))


async def discover_image_config(renderer: Any) -> tuple[ServerImageConfig, VLLMProcessor] | str:
    """The image configuration and the processor of a server, or the reason why it cannot resolve references."""
    config = renderer.model_config
    if renderer.mm_processor is None:
        return "the model takes no images"
    info = renderer.get_mm_processor().info
    pad_id = getattr(config.hf_config, "image_token_id", None)
    reason = "it has another modality than images, or no token for them"
    for modality, family in _MODALITY_FAMILIES:
        max_images = info.allowed_mm_limits.get(modality, 0)
        if not max_images or pad_id is None:
            continue
        try:
            geometry = geometry_for(family, _processor_config(info))
            pipeline = ImagePipeline(renderer, modality, pad_id)
            schema = await _learn_schema(pipeline, geometry)
        except (GeometryError, InvalidImageRef, MaterialisationFailed) as error:
            reason = f"it is not of the family {family}: {error}"
            continue
        image_config = ServerImageConfig(
            modality, geometry, pad_id, _image_files(config.allowed_local_media_path), max_images
        )
        return image_config, VLLMProcessor(pipeline, schema, memory_from_environment())
    return f"no geometry explains the model's image processor: {reason}"


async def _learn_schema(pipeline: ImagePipeline, geometry: Geometry) -> ItemSchema:
    schemas = []
    for width, height in _PROBE_SIZES:
        item, _ = await make_image_item(
            pipeline, pipeline.load_image(_probe_image(width, height)), f"{width}x{height}", geometry
        )
        schemas.append(ItemSchema.from_item(item, geometry))
    if schemas[0] != schemas[1]:
        raise MaterialisationFailed("the items of two images have nothing in common")
    return schemas[0]


def _image_files(directory: str) -> ImageFiles | None:
    return ImageFiles(os.path.realpath(directory)) if directory else None


def _probe_image(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (127, 63, 31)).save(buffer, "PNG")
    return buffer.getvalue()


def _processor_config(info: Any) -> dict[str, Any]:
    # A family's own processor, with everything that --mm-processor-kwargs changed about it.
    image_processor = info.image_processor if hasattr(info, "image_processor") else info.get_image_processor()
    return dict(image_processor.to_dict())
