"""Writes the images of a request as references, for engines that run our plugin (`plugins/vllm`).

Such a request has the expanded prompt, and one line of text for each image. The line says where the image is, and has
the hash of its bytes and its layout. The worker sends no tensors.
"""

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from renderers_adapter.errors import AdapterError
from renderers_adapter.geometry import Geometry
from renderers_adapter.refs import RawMMRef, RefError, format_ref
from renderers_adapter.tokens import Placeholder
from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.image_refs import FormattedReference, ImageRef
from rollout.engine.request import GenerateRequest

INLINE_RUN_ID = "inline"
"""The run id in a reference that contains the image itself, because this image is not in a run's directory."""


def reference_features(request: GenerateRequest, geometry: Geometry) -> dict[str, Any]:
    """Return the `features` of a request: the hash, the range in the expanded prompt and the reference of every image.

    Raises:
        RequestRefusedLocally: an image cannot be written as a reference, or its range does not fit its layout.
    """
    modality = vllm_modality_of(geometry)
    try:
        references = [
            _reference_text(image, placeholder, geometry)
            for image, placeholder in zip(request.images, request.placeholders, strict=True)
        ]
    except AdapterError as error:
        raise RequestRefusedLocally(
            f"{request.request_id}: {error}; set engine.multimodal: content_parts to send images without references."
        ) from error
    return {
        "mm_hashes": {modality: [image.hash for image in request.images]},
        "mm_placeholders": {
            modality: [{"offset": mark.offset, "length": mark.length} for mark in request.placeholders]
        },
        "kwargs_data": {modality: references},
    }


def vllm_modality_of(geometry: Geometry) -> str:
    """Return vLLM's name of the modality to which the images of a model family belong."""
    return geometry.vllm_modality or "image"


def find_layout_problem(plugin_info: bytes, geometry: Geometry) -> str | None:
    """Compare the answer of `/mmraw/version` with our layout.

    Returns:
        The reason why the engine cannot resolve references of this layout; None if it can.
    """
    try:
        answer = orjson.loads(plugin_info)
        engine_layout = {key: answer[key] for key in ("family", "fingerprint", "modality")}
        reference_versions = list(answer["refs"])
    except (ValueError, KeyError, TypeError):
        return "it answers in another form than our plugin"
    own_layout = {
        "family": geometry.family,
        "fingerprint": geometry.fingerprint,
        "modality": vllm_modality_of(geometry),
    }
    if "v3" not in reference_versions:
        return f"its plugin reads references of the versions {reference_versions}, but we write v3"
    if engine_layout != own_layout:
        return f"its image layout is {engine_layout}, but ours is {own_layout}; compare the processor configurations"
    return None


def _reference_text(image: ImageRef, placeholder: Placeholder, geometry: Geometry) -> str:
    reference = image.cached_references.get(geometry.fingerprint)
    if reference is None:
        reference = FormattedReference(
            _format_image_reference(image, geometry), geometry.tokens(geometry.grid(image.payload))
        )
        if image.is_file:
            image.cached_references[geometry.fingerprint] = reference
    # If the range is too long, the engine crashes. If the range is too short, the engine uses the wrong embeddings.
    if placeholder.length != reference.token_count:
        raise RefError(
            f"the layout of image {image.hash} takes {reference.token_count} tokens, but its placeholder has "
            f"{placeholder.length}"
        )
    return reference.text


def _format_image_reference(image: ImageRef, geometry: Geometry) -> str:
    run_id, file_name, uri = INLINE_RUN_ID, None, None
    if image.is_file:
        run_id, file_name = _run_and_file_name(PurePosixPath(unquote(urlsplit(image.url).path)))
    else:
        uri = image.url
    return format_ref(
        RawMMRef(
            run_id=run_id,
            family=geometry.family,
            fingerprint=geometry.fingerprint,
            modality=vllm_modality_of(geometry),
            mm_hash=image.hash,
            payload=image.payload,
            raw_image_id=file_name,
            raw_uri=uri,
        )
    )


def _run_and_file_name(path: PurePosixPath) -> tuple[str, str]:
    # A run keeps its images in assets/images below its directory, which has the name of the run.
    directory = path.parent
    run_directory = directory.parent.parent if directory.parts[-2:] == ("assets", "images") else directory
    return run_directory.name, path.name
