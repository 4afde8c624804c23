"""Reads a server's image configuration from its model at the start, and tests its image processor with two images."""

import io
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
    """Return the image configuration and the processor of a server, or the reason why it cannot resolve references."""
    config = renderer.model_config
    if renderer.mm_processor is None:
        return "the model does not take images"
    info = renderer.get_mm_processor().info
    pad_id = getattr(config.hf_config, "image_token_id", None)
    reason = "the model does not take images, or has no token for them"
    for modality, family in _MODALITY_FAMILIES:
        max_images = info.allowed_mm_limits.get(modality, 0)
        if not max_images or pad_id is None:
            continue
        try:
            geometry = geometry_for(family, _processor_config(info))
            pipeline = ImagePipeline(renderer, modality, pad_id)
            schema = await _learn_schema(pipeline, geometry)
        except (GeometryError, InvalidImageRef, MaterialisationFailed) as error:
            reason = f"the processor is not of the family {family}: {error}"
            continue
        directory = config.allowed_local_media_path
        files = ImageFiles(directory) if directory else None
        image_config = ServerImageConfig(modality, geometry, pad_id, files, max_images)
        return image_config, VLLMProcessor(pipeline, schema, memory_from_environment())
    return f"no geometry fits the model's image processor: {reason}"


async def _learn_schema(pipeline: ImagePipeline, geometry: Geometry) -> ItemSchema:
    schemas = []
    for width, height in _PROBE_SIZES:
        item, _ = await make_image_item(
            pipeline, pipeline.load_image(_probe_image(width, height)), f"{width}x{height}", geometry
        )
        schemas.append(ItemSchema.from_item(item, geometry))
    if schemas[0] != schemas[1]:
        raise MaterialisationFailed(
            "the processor makes tensors with different names, types or dimensions for different images"
        )
    return schemas[0]


def _probe_image(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (127, 63, 31)).save(buffer, "PNG")
    return buffer.getvalue()


def _processor_config(info: Any) -> dict[str, Any]:
    # This processor already has the settings of --mm-processor-kwargs.
    image_processor = info.image_processor if hasattr(info, "image_processor") else info.get_image_processor()
    return dict(image_processor.to_dict())
