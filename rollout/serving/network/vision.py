"""What the vision tower makes of images: each distinct one is encoded once, until the weights change."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rollout.serving.network.prompts import Picture

_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One image as the language model takes it: at its own place, and deeper ones where the family has them."""

    embeddings: torch.Tensor
    deep: tuple[torch.Tensor, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.embeddings, *self.deep))


class ImageEncoder:
    """A vision tower with a cache that holds the most recently used features."""

    def __init__(self, tower: Any, device: str) -> None:
        self._tower = tower
        self._device = device
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._size = 0

    def encode(self, pictures: Iterable[Picture]) -> Mapping[str, Features]:
        """The features of all of them by name; those that are not known are computed together."""
        wanted = {picture.name: picture for picture in pictures}
        found = {name: self._kept[name] for name in wanted if name in self._kept}
        missing = [picture for name, picture in wanted.items() if name not in found]
        if missing:
            found |= self._compute(missing)
        for name, features in found.items():
            self._keep(name, features)
        return found

    def _compute(self, pictures: list[Picture]) -> dict[str, Features]:
        pixels = torch.cat([torch.from_numpy(picture.patches.patches) for picture in pictures]).to(self._device)
        grids = torch.tensor([picture.patches.grid for picture in pictures], device=self._device)
        out = self._tower(pixels, grids, return_dict=True)
        layers = getattr(out, "deepstack_features", None) or []
        return {
            picture.name: Features(out.pooler_output[at], tuple(layer[at] for layer in layers))
            for at, picture in enumerate(pictures)
        }

    def _keep(self, name: str, features: Features) -> None:
        if name not in self._kept:
            self._size += features.size
        self._kept[name] = features
        self._kept.move_to_end(name)
        while self._size > _CACHE_BYTES and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1].size
