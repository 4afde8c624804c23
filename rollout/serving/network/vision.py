"""Computes the features of images, and caches them until the weights change."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rollout.serving.network.prompts import PromptImage

_MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class VisionFeatures:
    """The features of one image for the language model.

    Attributes:
        embeddings: the embeddings of the image's pad tokens.
        deepstack: further features that layers of the language model add, if the family has them.
    """

    embeddings: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.embeddings, *self.deepstack))


class ImageEncoder:
    """A vision tower with a cache of the most recently used features."""

    def __init__(self, vision_tower: Any, device: str) -> None:
        self._vision_tower = vision_tower
        self._device = device
        self._cache: OrderedDict[str, VisionFeatures] = OrderedDict()
        self._cache_bytes = 0

    def encode(self, images: Iterable[PromptImage]) -> Mapping[str, VisionFeatures]:
        """Return the features of all images, by hash. Features that are not cached are computed together."""
        images_by_hash = {image.image_hash: image for image in images}
        features_by_hash = {
            image_hash: self._cache[image_hash] for image_hash in images_by_hash if image_hash in self._cache
        }
        missing = [image for image_hash, image in images_by_hash.items() if image_hash not in features_by_hash]
        if missing:
            features_by_hash |= self._compute(missing)
        for image_hash, features in features_by_hash.items():
            self._store(image_hash, features)
        return features_by_hash

    def _compute(self, images: list[PromptImage]) -> dict[str, VisionFeatures]:
        pixels = torch.cat([torch.from_numpy(image.processed.patches) for image in images]).to(self._device)
        grids = torch.tensor([image.processed.grid for image in images], device=self._device)
        out = self._vision_tower(pixels, grids, return_dict=True)
        layers = getattr(out, "deepstack_features", None) or []
        return {
            image.image_hash: VisionFeatures(out.pooler_output[index], tuple(layer[index] for layer in layers))
            for index, image in enumerate(images)
        }

    def _store(self, image_hash: str, features: VisionFeatures) -> None:
        if image_hash not in self._cache:
            self._cache_bytes += features.nbytes
        self._cache[image_hash] = features
        self._cache.move_to_end(image_hash)
        while self._cache_bytes > _MAX_CACHE_BYTES and len(self._cache) > 1:
            self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
