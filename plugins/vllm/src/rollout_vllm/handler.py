"""Wraps vLLM's handler of `POST /inference/v1/generate`.

A request without images goes to vLLM unchanged. For other requests, the handler checks and resolves the images. vLLM
then gets tensors that are named by their digests. A bad request gets an answer with status 400 in vLLM's format, with
the type `invalid_mm_image_ref` and the path of the wrong item in `param`. If the server fails, the answer has status
500.
"""

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pybase64
from vllm import envs
from vllm.entrypoints.serve import create_error_response
from vllm.logger import init_logger
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY

from .errors import InvalidImageRef, MaterialisationFailed
from .image_config import ServerImageConfig
from .image_items import check_content_parts
from .metrics import PluginMetrics
from .resolver import Resolver

ERROR_TYPE = "invalid_mm_image_ref"

logger = init_logger("vllm.mmraw")


class ImageRefHandler:
    """Replaces vLLM's `ServingTokens`, and passes valid requests to it."""

    def __init__(
        self, vllm_handler: Any, image_config: ServerImageConfig, resolver: Resolver, metrics: PluginMetrics
    ) -> None:
        self._vllm_handler = vllm_handler
        self._image_config = image_config
        self._resolver = resolver
        self._metrics = metrics
        self._part_verifier = ContentPartVerifier(vllm_handler.model_config)

    async def serve_tokens(self, request: Any, raw_request: Any = None) -> Any:
        """Return vLLM's answer, or an error answer if an image is refused or cannot be processed."""
        try:
            if request.features is not None:
                await self._replace_features(request)
            else:
                await self._check_parts(request)
        except InvalidImageRef as error:
            self._metrics.refused.inc()
            return create_error_response(str(error), ERROR_TYPE, param=error.param)
        except MaterialisationFailed as error:
            self._metrics.failed.inc()
            logger.error("This server could not resolve the images of a request: %s", error)
            return create_error_response(str(error), "InternalServerError", HTTPStatus.INTERNAL_SERVER_ERROR)
        return await self._vllm_handler.serve_tokens(request, raw_request)

    async def _replace_features(self, request: Any) -> None:
        resolved = await self._resolver.resolve(request.token_ids, request.features)
        modality = self._image_config.modality
        request.features = request.features.model_copy(
            update={
                "mm_hashes": {modality: resolved.tensor_digests},
                "kwargs_data": {modality: resolved.serialised_items},
                "mm_metadata": None,
            }
        )

    async def _check_parts(self, request: Any) -> None:
        parts = request.content_parts or []
        check_content_parts(request.token_ids, parts, self._image_config)
        for index, part in enumerate(parts):
            if part.get("uuid") is not None:
                await self._part_verifier.verify(part, f"content_parts[{index}]")


class ContentPartVerifier:
    """Checks that the `uuid` of a part is the hash of its image, because vLLM uses it unchecked as a cache key."""

    def __init__(self, model_config: Any) -> None:
        self._connector = MEDIA_CONNECTOR_REGISTRY.load(
            envs.VLLM_MEDIA_CONNECTOR,
            allowed_local_media_path=model_config.allowed_local_media_path,
            allowed_media_domains=model_config.allowed_media_domains,
        )
        self._media_io = _Sha256MediaIO()

    async def verify(self, part: dict[str, Any], param: str) -> None:
        """Check one part. A part that cannot be read passes, because vLLM itself will refuse it.

        Raises:
            InvalidImageRef: the uuid is not the hash of the image's bytes.
        """
        try:
            sha256 = await self._connector.load_from_url_async(part["url"], self._media_io)
        except Exception:  # noqa: BLE001 - vLLM reads the part again, and reports the error itself
            return
        if not (len(part["uuid"]) >= 16 and sha256.startswith(part["uuid"])):
            raise InvalidImageRef(
                f"the uuid is {part['uuid'][:128]!r}, but the SHA-256 of the image's bytes is {sha256}; send at least"
                " its first 16 digits, or no uuid",
                param,
            )


class _Sha256MediaIO:
    """Computes the hash of the bytes that vLLM's connector reads, as a `MediaIO`."""

    def get_max_bytes(self) -> int | None:
        return None

    def load_bytes(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def load_base64(self, media_type: str, data: str) -> str:
        return self.load_bytes(pybase64.b64decode(data, validate=True))

    def load_file(self, filepath: Path) -> str:
        return self.load_bytes(filepath.read_bytes())
