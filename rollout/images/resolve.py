"""From what a message gives as an image to a checked, stored asset, under one policy.

The images of a request are resolved together: nothing is stored before all of them were accepted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from rollout.images.allowed_files import Root, path_of_file_url, read_contained
from rollout.images.cache import Asset, KnownImages
from rollout.images.errors import ImageError
from rollout.images.inspect import confirm_image, inspect_image
from rollout.images.message_parts import ImagePart
from rollout.images.policy import ImagePolicy
from rollout.images.sources import decode_data_uri, describe, encode_data_uri, encode_pillow
from rollout.images.store import ASSET_NAME, ImageStore


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A checked image, and its bytes where it has yet to be stored under its URL."""

    asset: Asset
    to_store: bytes | None = None


class ImageResolver:
    """Resolves images under one policy, remembering what it has seen; safe to use from many threads."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._limits = policy.limits
        self._known = KnownImages()
        self._run = Root.at(policy.directory)
        self._roots = (self._run, *map(Root.at, policy.allow))

    @cached_property
    def _store(self) -> ImageStore:
        # Opened by the first image that is not known, and so never on an event loop.
        return ImageStore(self._policy.directory, fsync=self._policy.fsync)

    def recall(self, parts: Sequence[ImagePart]) -> list[Asset] | None:
        """The assets of these parts if every one of them is known already."""
        assets = []
        for part in parts:
            asset = self._known.get(part.source) if isinstance(part.source, str) else None
            if asset is None:
                return None
            assets.append(asset)
        return assets

    def resolve(self, parts: Sequence[ImagePart]) -> tuple[list[Asset], int]:
        """The assets of these parts, and the number of bytes that were newly stored.

        Raises:
            ImageError: an image is refused; nothing was stored.
            ImageStoreError: the image directory cannot be used.
        """
        store, accepted = self._store, []
        for part in parts:
            try:
                accepted.append(self._accept(part.source))
            except ImageError as error:
                raise error.at(part.message_index, part.part_index) from error
        written = 0
        for part, image in zip(parts, accepted, strict=True):
            if image.to_store is not None:
                written += store.add(image.asset.file_name, image.to_store)
            self._known.add(image.asset.url, image.asset)
            if isinstance(part.source, str) and part.source.startswith("data:"):
                self._known.add(part.source, image.asset)
        return [image.asset for image in accepted], written

    def _accept(self, source: Any) -> _Accepted:
        if isinstance(source, str):
            known = self._known.get(source)
            if known is not None:
                return _Accepted(known)
            if source.startswith("data:"):
                return self._accept_bytes(decode_data_uri(source, self._limits.max_bytes), uri=source)
            if source.startswith("file://"):
                return self._accept_file(source)
        elif isinstance(source, bytes | bytearray | memoryview):
            return self._accept_bytes(bytes(source))
        elif isinstance(source, Image.Image):
            return self._accept_bytes(encode_pillow(source))
        raise ImageError(describe(source))

    def _accept_bytes(self, data: bytes, *, uri: str | None = None) -> _Accepted:
        asset = self._identify(data)
        if self._policy.mode == "offload":
            return _Accepted(asset, to_store=data)
        return _Accepted(replace(asset, url=uri or encode_data_uri(asset.media_type, data)))

    def _accept_file(self, url: str) -> _Accepted:
        path = path_of_file_url(url)
        data = read_contained(path, self._roots, self._limits.max_bytes)
        name = PurePosixPath(path).name
        asset = self._identify(data)
        if self._run.is_direct_child(path) and ASSET_NAME.fullmatch(name):
            if name != asset.file_name:
                raise ImageError(f"the asset {name} no longer holds the image that its name stands for")
            return _Accepted(asset)
        # A foreign file is copied: its owner may change it, and the trainer must find what the engine saw.
        return _Accepted(asset, to_store=data)

    def _identify(self, data: bytes) -> Asset:
        info = confirm_image(data, inspect_image(data, self._limits))
        sha256 = hashlib.sha256(data).hexdigest()
        file_name = sha256 + info.format.extension
        return Asset(
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
def resolver_for(policy: ImagePolicy) -> ImageResolver:
    """The one resolver of a policy in this process."""
    return ImageResolver(policy)
