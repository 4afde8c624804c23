"""Images as references, for engines that run our plugin (`plugins/vllm`): the prompt goes out expanded, and each image
as one line that says where it lies, which bytes it has, and how it is laid out. No tensor leaves the worker.
"""

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from renderers_adapter.errors import AdapterError
from renderers_adapter.geometry import Geometry
from renderers_adapter.refs import RawMMRef, RefError, format_ref
from renderers_adapter.tokens import Placeholder
from rollout.engine.errors import EngineRefused, RequestRefusedLocally
from rollout.engine.image_refs import ImageRef, WrittenReference
from rollout.engine.request import GenerateRequest

INLINE_RUN = "inline"
"""Stands for the run in a reference that carries its image: it lies in no run's directory."""


def raw_features(request: GenerateRequest, geometry: Geometry) -> dict[str, Any]:
    """The `features` of a request: for every image its hash, its range in the expanded prompt, and its reference.

    Raises:
        RequestRefusedLocally: an image cannot be written as a reference, or has another range than its layout takes.
    """
    modality = modality_of(geometry)
    try:
        refs = [
            _reference(image, mark, geometry) for image, mark in zip(request.images, request.placeholders, strict=True)
        ]
    except AdapterError as error:
        raise RequestRefusedLocally(
            f"{request.request_id}: {error}; engine.multimodal: content_parts sends images without references."
        ) from error
    return {
        "mm_hashes": {modality: [image.hash for image in request.images]},
        "mm_placeholders": {
            modality: [{"offset": mark.offset, "length": mark.length} for mark in request.placeholders]
        },
        "kwargs_data": {modality: refs},
    }


def modality_of(geometry: Geometry) -> str:
    """The engine's name for the images of a family."""
    return geometry.vllm_modality or "image"


def require_same_layout(told: bytes, geometry: Geometry) -> None:
    """Read what a plugin says of its server.

    Raises:
        EngineRefused: it does not resolve references of this layout; the text says why.
    """
    try:
        answer = orjson.loads(told)
        theirs = {key: answer[key] for key in ("family", "fingerprint", "modality")}
        versions = list(answer["refs"])
    except (ValueError, KeyError, TypeError):
        raise EngineRefused("its answer is not that of our plugin") from None
    ours = {"family": geometry.family, "fingerprint": geometry.fingerprint, "modality": modality_of(geometry)}
    if "v3" not in versions:
        raise EngineRefused(f"its plugin reads references of the versions {versions}, and we write v3")
    if theirs != ours:
        raise EngineRefused(
            f"its images are laid out by {theirs}, ours by {ours}; compare the processor configurations"
        )


def _reference(image: ImageRef, mark: Placeholder, geometry: Geometry) -> str:
    reference = image.written.get(geometry.fingerprint)
    if reference is None:
        reference = WrittenReference(_write(image, geometry), geometry.tokens(geometry.grid(image.payload)))
        if image.in_file:
            image.written[geometry.fingerprint] = reference
    # An engine dies of a range that is longer than the image's embeddings, and fills a shorter one with the wrong ones.
    if mark.length != reference.tokens:
        raise RefError(
            f"the image {image.hash} takes {reference.tokens} tokens by its layout, and has {mark.length} places"
        )
    return reference.text


def _write(image: ImageRef, geometry: Geometry) -> str:
    run_id, name, uri = INLINE_RUN, None, None
    if image.in_file:
        run_id, name = _place(PurePosixPath(unquote(urlsplit(image.url).path)))
    else:
        uri = image.url
    return format_ref(
        RawMMRef(
            run_id=run_id,
            family=geometry.family,
            fingerprint=geometry.fingerprint,
            modality=modality_of(geometry),
            mm_hash=image.hash,
            payload=image.payload,
            raw_image_id=name,
            raw_uri=uri,
        )
    )


def _place(path: PurePosixPath) -> tuple[str, str]:
    # A run keeps its images in assets/images below its directory, which is called as the run is.
    directory = path.parent
    run = directory.parent.parent if directory.parts[-2:] == ("assets", "images") else directory
    return run.name, path.name
