"""Sequences that are decoded together: their keys and values, padded on the left to one length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

Layers = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(slots=True, eq=False)
class Cohort:
    """A row for each sequence.

    Attributes:
        layers: keys and values of each layer, (rows, heads, length, size).
        mask: (rows, length), 0 where a shorter sequence is padded.
        positions: of the token that comes next, on all three axes.
    """

    layers: Layers
    mask: torch.Tensor
    positions: torch.Tensor

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the padding that nobody needs any more."""
        if len(rows) == len(self.mask):
            return
        chosen = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        padding = int((self.mask.cumsum(1) == 0).sum(1).min()) if len(rows) else 0
        self.mask = self.mask[:, padding:]
        self.layers = [(keys[chosen, :, padding:], values[chosen, :, padding:]) for keys, values in self.layers]

    def joined(self, other: "Cohort") -> "Cohort":
        """Both, one after the other."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        left, right = self._padded(length), other._padded(length)
        return Cohort(
            [
                (torch.cat((keys, others)), torch.cat((values, other_values)))
                for (keys, values), (others, other_values) in zip(left.layers, right.layers, strict=True)
            ],
            torch.cat((left.mask, right.mask)),
            torch.cat((left.positions, right.positions)),
        )

    def _padded(self, length: int) -> "Cohort":
        more = length - self.mask.shape[1]
        if not more:
            return self
        layers = [(pad(keys, (0, 0, more, 0)), pad(values, (0, 0, more, 0))) for keys, values in self.layers]
        return Cohort(layers, pad(self.mask, (more, 0)), self.positions)


def layers_of(cache: Any) -> Layers:
    """The keys and values in a cache of transformers."""
    return [(layer.keys, layer.values) for layer in cache.layers]
