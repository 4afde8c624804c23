"""Arrays as raw bytes with dtype and shape: numpy without copies in both directions, torch only if it is used.

The description of an array is `<dtype, ndim, frame>` and then one 64-bit length per axis. Frame 0 means that the bytes
follow directly; any other number is the frame of the record that has them. The length of a description is a multiple of
eight bytes, so that the bytes after it are aligned.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from transports.codec.limits import MAX_VALUES
from transports.errors import CodecError, MalformedRecord, UnsupportedValue

Array: TypeAlias = npt.NDArray[Any]

NUMPY_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
DTYPES = (*NUMPY_DTYPES, "bfloat16")
"""The dtypes of tensors, and except for bfloat16 of arrays; the index in this list is the code on the wire."""

_PREFIX = struct.Struct("<BBHI")
_MAX_AXES = 32
_SHAPES = tuple(struct.Struct(f"<{axes}Q") for axes in range(_MAX_AXES + 1))
_WIRE_DTYPES = (*(np.dtype(name).newbyteorder("<") for name in NUMPY_DTYPES), np.dtype("<i2"))
"""How the elements of each of DTYPES are stored in the bytes."""


def pack_description(array: Array, dtype: str, frame: int) -> bytes:
    return _PREFIX.pack(DTYPES.index(dtype), array.ndim, frame, 0) + _SHAPES[array.ndim].pack(*array.shape)


def to_wire_array(array: Array) -> Array:
    """The array as it is sent: little-endian and C-contiguous; the array itself if it already is."""
    if array.dtype.name not in NUMPY_DTYPES:
        raise UnsupportedValue(f"arrays of dtype {array.dtype} are not carried; use one of {', '.join(NUMPY_DTYPES)}")
    if array.ndim > _MAX_AXES:
        raise UnsupportedValue(f"an array of {array.ndim} axes; at most {_MAX_AXES} are carried")
    if not array.size and not _is_small(array.shape):
        raise UnsupportedValue(f"an array of shape {array.shape}, which has no elements and is too long")
    # ascontiguousarray gives an array without axes one axis, so the shape is restored.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def raw_bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_array(extension: bytes, take_frame: Callable[[int], memoryview]) -> tuple[Array, str]:
    """The described array, as a read-only view of the bytes of its frame, and the name of its dtype."""
    if len(extension) < _PREFIX.size:
        raise MalformedRecord("the description of an array is cut off")
    code, axes, frame, reserved = _PREFIX.unpack_from(extension)
    data_start = _PREFIX.size + 8 * axes
    if code >= len(DTYPES) or axes > _MAX_AXES or reserved or len(extension) < data_start:
        raise MalformedRecord("the description of an array is damaged")
    shape = _SHAPES[axes].unpack_from(extension, _PREFIX.size)
    buffer: bytes | memoryview = extension
    if frame:
        if len(extension) > data_start:
            raise MalformedRecord("an array has bytes both in the head and in a frame")
        buffer, data_start = take_frame(frame), 0
    dtype = _WIRE_DTYPES[code]
    # math.prod counts in Python's integers, which no shape overflows.
    if math.prod(shape) * dtype.itemsize != len(buffer) - data_start:
        raise MalformedRecord(
            f"an array of shape {shape} and dtype {DTYPES[code]} comes with {len(buffer) - data_start} bytes"
        )
    if len(buffer) == data_start and not _is_small(shape):
        raise MalformedRecord(f"an array of shape {shape}, which has no elements and is too long")
    try:
        return np.ndarray(shape, dtype, buffer, data_start), DTYPES[code]
    except ValueError as error:  # an empty array whose other axes are beyond what numpy indexes
        raise MalformedRecord(f"an array of shape {shape}: {error}") from None


def _is_small(shape: Sequence[int]) -> bool:
    """Whether an array without elements is small: as nested lists, it may have no more values than a record."""
    return math.prod(axis for axis in shape if axis) <= MAX_VALUES


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor; never if torch was not imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_to_array(tensor: Any) -> tuple[Array, str]:
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedValue("sparse and quantised tensors are not carried; send their parts")
    dtype_name = str(tensor.dtype).removeprefix("torch.")
    if dtype_name not in DTYPES:
        raise UnsupportedValue(f"tensors of dtype {dtype_name} are not carried; use one of {', '.join(DTYPES)}")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return (plain.view(torch.int16) if dtype_name == "bfloat16" else plain).numpy(), dtype_name


def array_to_tensor(array: Array, dtype: str) -> Any:
    """A tensor with memory of its own: torch has no read-only tensors, and nobody may write to the frame."""
    try:
        torch = import_module("torch")
    except ImportError as error:
        raise CodecError(
            "the record holds a torch tensor, and torch is not installed here; send numpy arrays"
        ) from error
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
