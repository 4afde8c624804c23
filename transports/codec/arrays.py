"""Encodes numpy arrays as raw bytes with a description, and decodes them. Neither direction copies the bytes.

The description of an array has the dtype, the number of axes, the number of a frame, and one 64-bit length for each
axis. If the frame number is 0, the bytes of the array follow the description; otherwise they are in that frame. The
length of a description is a multiple of eight, so that the bytes after it are aligned.
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
"""The dtypes that a record can carry. The description of an array contains the index of its dtype in this list."""

_PREFIX = struct.Struct("<BBHI")
_MAX_AXES = 32
_SHAPES = tuple(struct.Struct(f"<{axes}Q") for axes in range(_MAX_AXES + 1))
_WIRE_DTYPES = tuple(np.dtype(name).newbyteorder("<") for name in DTYPES)
"""The numpy dtypes for DTYPES in little-endian byte order, as records store them."""


def pack_description(array: Array, frame: int) -> bytes:
    """Return the description of an array. `frame` is the number of the frame with its bytes, or 0."""
    return _PREFIX.pack(DTYPES.index(array.dtype.name), array.ndim, frame, 0) + _SHAPES[array.ndim].pack(*array.shape)


def to_wire_array(array: Array) -> Array:
    """Return the array in the form that records store: little-endian and C-contiguous.

    Raises UnsupportedValue if a record cannot carry its dtype or its shape.
    """
    if array.dtype.name not in DTYPES:
        raise UnsupportedValue(f"the dtype {array.dtype} is not supported; use one of {', '.join(DTYPES)}")
    if array.ndim > _MAX_AXES:
        raise UnsupportedValue(f"the array has {array.ndim} axes, but at most {_MAX_AXES} are supported; reshape it")
    if not array.size and not _is_small(array.shape):
        raise UnsupportedValue(
            f"the array has no elements, but its shape {array.shape} is too long; use a shorter shape"
        )
    # ascontiguousarray adds an axis to an array without axes, so restore the shape.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def raw_bytes(array: Array) -> memoryview:
    """Return a view of the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def read_array(extension: bytes, take_frame: Callable[[int], memoryview]) -> Array:
    """Return the array that a description describes, as a read-only view of its bytes. Raises MalformedRecord.

    Args:
        extension: the description, and the bytes of the array if no frame has them.
        take_frame: returns the bytes of the frame with this number.
    """
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
            raise MalformedRecord("an array has bytes both in the head and in a frame; only one is allowed")
        buffer, data_start = take_frame(frame), 0
    dtype = _WIRE_DTYPES[code]
    # math.prod uses Python's integers, which do not overflow for a large shape.
    if math.prod(shape) * dtype.itemsize != len(buffer) - data_start:
        raise MalformedRecord(
            f"the record has {len(buffer) - data_start} bytes for an array of shape {shape} and dtype {DTYPES[code]}"
        )
    if len(buffer) == data_start and not _is_small(shape):
        raise MalformedRecord(f"an array has no elements, but its shape {shape} is too long")
    try:
        return np.ndarray(shape, dtype, buffer, data_start)
    except ValueError as error:  # the array is empty, and numpy cannot index one of its axes
        raise MalformedRecord(f"an array has the shape {shape}, which numpy refuses: {error}") from None


def _is_small(shape: Sequence[int]) -> bool:
    """Whether an array without elements would have at most MAX_VALUES values if it were converted to nested lists."""
    return math.prod(axis for axis in shape if axis) <= MAX_VALUES
