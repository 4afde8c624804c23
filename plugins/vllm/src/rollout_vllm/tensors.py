"""Writes and reads serialised tensors in vLLM's format, and checks that this server would make such tensors."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pybase64
import torch
from vllm.multimodal.inputs import MultiModalFlatField, MultiModalKwargsItem
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from .contract.geometry import Geometry, GeometryError
from .errors import InvalidImageRef

_INLINE_THRESHOLD_BYTES = 2**62


def serialise(item: MultiModalKwargsItem) -> str:
    """Serialise an item as vLLM's `mm_serde` does, but with a new encoder, because vLLM's one is not thread-safe."""
    (buffer,) = MsgpackEncoder(size_threshold=_INLINE_THRESHOLD_BYTES).encode(item)
    return pybase64.b64encode(buffer).decode("ascii")


def digest_tensors(item: MultiModalKwargsItem) -> str:
    """Return a hash of the names, types, shapes and values of an item's tensors."""
    hasher = hashlib.sha256()
    for key in sorted(item):
        tensor = item[key].data
        hasher.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        hasher.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return hasher.hexdigest()


def read_grid(item: MultiModalKwargsItem, geometry: Geometry) -> tuple[int, int, int]:
    """Return the grid of an item.

    Raises:
        GeometryError: the item has no valid grid.
    """
    elem = item.get(geometry.grid_key)
    return geometry.grid({} if elem is None else {geometry.grid_key: elem.data.tolist()})


@dataclass(frozen=True, slots=True)
class _FieldSchema:
    """The properties of a tensor that are the same for all images: its type, its dimensions and its batching."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    batching: tuple[str, bool, int | None]

    @classmethod
    def from_element(cls, elem: Any) -> "_FieldSchema":
        tensor, field = elem.data, elem.field
        flat = isinstance(field, MultiModalFlatField)
        join = (type(field).__name__, field.keep_on_cpu, field.dim if flat else None)
        return cls(tensor.dtype, tuple(tensor.shape[1:] if flat else tensor.shape), join)


@dataclass(frozen=True, slots=True)
class ItemSchema:
    """The properties that all image items of this server share. They are read from an item that the server made.

    Attributes:
        geometry: the geometry of the server's model.
        fields: the schema of each tensor, by the tensor's name.
    """

    geometry: Geometry
    fields: Mapping[str, _FieldSchema]

    @classmethod
    def from_item(cls, item: MultiModalKwargsItem, geometry: Geometry) -> Self:
        """Return the schema of an item."""
        return cls(geometry, {key: _FieldSchema.from_element(elem) for key, elem in item.items()})

    def verify(self, serialised: str, placeholder_length: int) -> str:
        """Check a serialised item that has `placeholder_length` placeholder tokens, and return its digest.

        Raises:
            InvalidImageRef: the item cannot be read, or this server would not make such an item.
        """
        item = _deserialise(serialised)
        if item.keys() != self.fields.keys():
            raise InvalidImageRef(f"the item has the tensors {sorted(item)[:8]}; expected {sorted(self.fields)}")
        for key, expected in self.fields.items():
            _require_field(key, item[key], expected)
        try:
            grid = read_grid(item, self.geometry)
        except GeometryError as error:
            raise InvalidImageRef(str(error)) from error
        self._require_grid(item, grid, placeholder_length)
        return digest_tensors(item)

    def _require_grid(self, item: MultiModalKwargsItem, grid: tuple[int, int, int], placeholder_length: int) -> None:
        patches, merge_size = math.prod(grid), _merge_size(self.geometry)
        if grid[0] != 1 or grid[1] % merge_size or grid[2] % merge_size:
            raise InvalidImageRef(
                f"the grid is {list(grid)}; expected one image with whole cells of {merge_size}×{merge_size} patches"
            )
        token_count = self.geometry.tokens(grid)
        if token_count != placeholder_length:
            raise InvalidImageRef(
                f"the grid {list(grid)} has {token_count} tokens, but the placeholder range has {placeholder_length}"
            )
        for key, expected in self.fields.items():
            if expected.batching[2] is not None and item[key].data.shape[0] != patches:
                raise InvalidImageRef(f"{key} has {item[key].data.shape[0]} rows, but its grid has {patches} patches")


def _require_field(key: str, elem: Any, expected: _FieldSchema) -> None:
    tensor = elem.data
    if not isinstance(tensor, torch.Tensor) or not tensor.dim():
        raise InvalidImageRef(f"{key} is not a tensor with at least one dimension")
    actual = _FieldSchema.from_element(elem)
    if actual != expected:
        raise InvalidImageRef(
            f"{key} is {actual.dtype} {list(tensor.shape)}, joined as {actual.batching}; expected {expected.dtype} with"
            f" the last dimensions {list(expected.shape)}, joined as {expected.batching}, as this server makes it"
        )


def _deserialise(text: str) -> MultiModalKwargsItem:
    try:
        item = MsgpackDecoder(t=MultiModalKwargsItem).decode(pybase64.b64decode(text, validate=True))
    except MemoryError:
        raise
    except Exception as error:  # the decoder may raise any error for invalid input
        raise InvalidImageRef(
            f"the item is neither an mmraw: reference nor serialised tensors: {str(error)[:200]}"
        ) from error
    if not isinstance(item, MultiModalKwargsItem):
        raise InvalidImageRef(f"the item is of type {type(item).__name__}; expected serialised tensors")
    return item


def _merge_size(geometry: Geometry) -> int:
    processor_settings = geometry.knobs
    return int(processor_settings.get("merge_size") or processor_settings["merge_kernel_size"])
