"""Checks the images in messages under one policy, and stores them as assets.

The images of a request are resolved together. No image is stored before all of them are accepted.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from renderers_adapter.decoding_memory import shared_decoding_memory
from rollout.images.allowed_files import AllowedDirectory, file_url_to_path, read_allowed_file
from rollout.images.cache import AssetCache, ImageAsset
from rollout.images.decoding import hold_memory
from rollout.images.errors import ImageError
from rollout.images.inspect import check_depth, check_size, confirm_decodable, inspect_image, pillow_decoding_bytes
from rollout.images.message_parts import ImagePart
from rollout.images.policy import ImagePolicy
from rollout.images.sources import decode_data_uri, describe_rejected_source, encode_data_uri, encode_pillow_image
from rollout.images.store import ImageStore
from rollout.records.bounds import ASSET_NAME


@dataclass(frozen=True, slots=True)
class _AcceptedImage:
    """A checked image, which may still have to be stored.

    Attributes:
        asset: the image.
        bytes_to_store: the encoded image if it must be stored; None if it is already stored or stays in the message.
    """

    asset: ImageAsset
    bytes_to_store: bytes | None = None


class ImageResolver:
    """Checks and stores images under one policy, and caches them. It is thread-safe."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._limits = policy.limits
        self._memory = shared_decoding_memory(policy.memory)
        self._asset_cache = AssetCache()
        self._run_images = AllowedDirectory.from_path(policy.directory)
        self._allowed_directories = (self._run_images, *map(AllowedDirectory.from_path, policy.allow))

    @cached_property
    def _store(self) -> ImageStore:
        # The first image that is not cached opens the store. This happens in a thread, not on the event loop.
        return ImageStore(self._policy.directory, fsync=self._policy.fsync)

    def find_cached(self, parts: Sequence[ImagePart]) -> list[ImageAsset] | None:
        """Return the assets of these parts; None if an image is not cached."""
        assets = []
        for part in parts:
            asset = self._asset_cache.get(part.source) if isinstance(part.source, str) else None
            if asset is None:
                return None
            assets.append(asset)
        return assets

    def resolve(self, parts: Sequence[ImagePart], stop: "Future[None] | None" = None) -> tuple[list[ImageAsset], int]:
        """Check the images of these parts and store the new ones.

        Args:
            parts: the image parts of one or more messages.
            stop: a future; a result in it ends the wait for memory.

        Returns:
            The asset of each part, and the number of bytes that were written.

        Raises:
            ImageError: an image is refused; no image was stored.
            ImageMemoryError: the memory for decoding did not become free in time; no image was stored.
            ImageStoreError: the image directory cannot be used.
        """
        store, accepted = self._store, []
        for part in parts:
            try:
                accepted.append(self._accept(part.source, stop))
            except ImageError as error:
                raise error.at(part.message_index, part.part_index) from error
        bytes_written = 0
        for part, image in zip(parts, accepted, strict=True):
            if image.bytes_to_store is not None:
                bytes_written += store.add(image.asset.file_name, image.bytes_to_store)
            self._asset_cache.add(image.asset.url, image.asset)
            if isinstance(part.source, str) and part.source.startswith("data:"):
                self._asset_cache.add(part.source, image.asset)
        return [image.asset for image in accepted], bytes_written

    def _accept(self, source: Any, stop: "Future[None] | None") -> _AcceptedImage:
        if isinstance(source, str):
            cached_asset = self._asset_cache.get(source)
            if cached_asset is not None:
                return _AcceptedImage(cached_asset)
            if source.startswith("data:"):
                return self._accept_bytes(decode_data_uri(source, self._limits.max_bytes), stop, data_uri=source)
            if source.startswith("file://"):
                return self._accept_file(source, stop)
        elif isinstance(source, bytes | bytearray | memoryview):
            return self._accept_bytes(bytes(source), stop)
        elif isinstance(source, Image.Image):
            return self._accept_pillow_image(source, stop)
        raise ImageError(describe_rejected_source(source))

    def _accept_pillow_image(self, image: Image.Image, stop: "Future[None] | None") -> _AcceptedImage:
        # Check the size before decoding, because the image may be an open file that is not decoded yet.
        check_size(image.width, image.height, None, self._limits)
        check_depth(image.mode)
        with hold_memory(self._memory, pillow_decoding_bytes(image, b""), stop):
            data = encode_pillow_image(image)
        return self._accept_bytes(data, stop)

    def _accept_bytes(self, data: bytes, stop: "Future[None] | None", *, data_uri: str | None = None) -> _AcceptedImage:
        asset = self._inspect_asset(data, stop)
        if self._policy.mode == "offload":
            return _AcceptedImage(asset, bytes_to_store=data)
        canonical_uri = encode_data_uri(asset.media_type, data)
        # If the two URIs are equal, keep the caller's string object, because the cache finds it by its identity.
        return _AcceptedImage(replace(asset, url=data_uri if data_uri == canonical_uri else canonical_uri))

    def _accept_file(self, url: str, stop: "Future[None] | None") -> _AcceptedImage:
        path = file_url_to_path(url)
        data = read_allowed_file(path, self._allowed_directories, self._limits.max_bytes)
        file_name = PurePosixPath(path).name
        asset = self._inspect_asset(data, stop)
        if self._run_images.is_direct_child(path) and ASSET_NAME.fullmatch(file_name):
            if file_name != asset.file_name:
                raise ImageError(f"the asset {file_name} was changed: its bytes no longer have the hash in its name")
            return _AcceptedImage(asset)
        # Copy a file from another directory. Its owner may change it, but trainer and engine must read the same bytes.
        return _AcceptedImage(asset, bytes_to_store=data)

    def _inspect_asset(self, data: bytes, stop: "Future[None] | None") -> ImageAsset:
        info = inspect_image(data, self._limits)
        if not info.proven:
            with hold_memory(self._memory, info.decoding_bytes, stop):
                info = confirm_decodable(data, info)
        sha256 = hashlib.sha256(data).hexdigest()
        file_name = sha256 + info.format.extension
        return ImageAsset(
            url=self._store.url(file_name),
            sha256=sha256,
            mm_hash=sha256[:32],
            file_name=file_name,
            width=info.width,
            height=info.height,
            n_bytes=len(data),
            media_type=info.format.media_type,
        )


@lru_cache(maxsize=8)
def shared_resolver(policy: ImagePolicy) -> ImageResolver:
    """Return the resolver for a policy. All callers in this process share it."""
    return ImageResolver(policy)
