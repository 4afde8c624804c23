"""The keys and values of sequences that are decoded together, padded on the left to the same length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

LayerKeyValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(slots=True, eq=False)
class DecodeBatch:
    """The keys and values of several sequences, a row for each.

    Attributes:
        layers: the keys and values of each layer, with the shape (rows, heads, length, size).
        attention_mask: shape (rows, length); 0 where a shorter sequence is padded.
        next_positions: shape (rows); the position of the next token, which is the same on all three axes.
    """

    layers: LayerKeyValues
    attention_mask: torch.Tensor
    next_positions: torch.Tensor

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, and remove padding that none of them needs."""
        if len(rows) == len(self.attention_mask):
            return
        row_indices = torch.tensor(rows, dtype=torch.long, device=self.attention_mask.device)
        self.attention_mask, self.next_positions = self.attention_mask[row_indices], self.next_positions[row_indices]
        padding = int((self.attention_mask.cumsum(1) == 0).sum(1).min()) if len(rows) else 0
        self.attention_mask = self.attention_mask[:, padding:]
        self.layers = [
            (keys[row_indices, :, padding:], values[row_indices, :, padding:]) for keys, values in self.layers
        ]

    def concatenate(self, other: "DecodeBatch") -> "DecodeBatch":
        """Return a batch with the rows of this batch, then those of `other`."""
        length = max(self.attention_mask.shape[1], other.attention_mask.shape[1])
        left, right = self._padded(length), other._padded(length)
        return DecodeBatch(
            [
                (torch.cat((keys, other_keys)), torch.cat((values, other_values)))
                for (keys, values), (other_keys, other_values) in zip(left.layers, right.layers, strict=True)
            ],
            torch.cat((left.attention_mask, right.attention_mask)),
            torch.cat((left.next_positions, right.next_positions)),
        )

    def _padded(self, length: int) -> "DecodeBatch":
        missing = length - self.attention_mask.shape[1]
        if not missing:
            return self
        layers = [(pad(keys, (0, 0, missing, 0)), pad(values, (0, 0, missing, 0))) for keys, values in self.layers]
        return DecodeBatch(layers, pad(self.attention_mask, (missing, 0)), self.next_positions)


def layers_of(cache: Any) -> LayerKeyValues:
    """Return the keys and values of each layer from a cache of transformers."""
    return [(layer.keys, layer.values) for layer in cache.layers]
