"""Numpy arrays as raw bytes with dtype and shape, without copies in both directions.

The description of an array is `<dtype, ndim, frame>`, and then one 64-bit length for each axis. Frame 0 means that the
bytes follow directly; any other number is the frame that has them. The length of a description is a multiple of eight
bytes, so that the bytes after it are aligned.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from transports.codec.limits import MAX_VALUES
from transports.errors import MalformedRecord, UnsupportedValue

Array: TypeAlias = npt.NDArray[Any]

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""The dtypes that are carried; the index in this list is the code in the description."""

_PREFIX = struct.Struct("<BBHI")
_MAX_AXES = 32
_SHAPES = tuple(struct.Struct(f"<{axes}Q") for axes in range(_MAX_AXES + 1))
_WIRE_DTYPES = tuple(np.dtype(name).newbyteorder("<") for name in DTYPES)
"""How the elements of each of DTYPES are stored in the bytes."""


def pack_description(array: Array, frame: int) -> bytes:
    """Return the description of an array whose bytes are in this frame."""
    return _PREFIX.pack(DTYPES.index(array.dtype.name), array.ndim, frame, 0) + _SHAPES[array.ndim].pack(*array.shape)


def to_wire_array(array: Array) -> Array:
    """Return the array as it is sent: little-endian and C-contiguous. Raises UnsupportedValue."""
    if array.dtype.name not in DTYPES:
        raise UnsupportedValue(f"arrays of dtype {array.dtype} are not carried; use one of {', '.join(DTYPES)}")
    if array.ndim > _MAX_AXES:
        raise UnsupportedValue(f"an array of {array.ndim} axes; at most {_MAX_AXES} are carried")
    if not array.size and not _is_small(array.shape):
        raise UnsupportedValue(f"an array of shape {array.shape}, which has no elements and is too long")
    # ascontiguousarray gives an array without axes one axis, so the shape is restored.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def raw_bytes(array: Array) -> memoryview:
    """Return a view of the bytes of an array."""
    return array.reshape(-1).view(np.uint8).data


def read_array(extension: bytes, take_frame: Callable[[int], memoryview]) -> Array:
    """Return the described array, as a read-only view of the bytes of its frame. Raises MalformedRecord."""
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
        return np.ndarray(shape, dtype, buffer, data_start)
    except ValueError as error:  # an empty array with an axis that numpy cannot index
        raise MalformedRecord(f"an array of shape {shape}: {error}") from None


def _is_small(shape: Sequence[int]) -> bool:
    """Whether an array without elements, as nested lists, has no more values than a record may have."""
    return math.prod(axis for axis in shape if axis) <= MAX_VALUES
