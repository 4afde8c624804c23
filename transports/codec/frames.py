"""Values to frames and back: one msgpack head, then large values outside of it, each a frame of its own.

The codec carries None, bool, integers of 64 bits, float, str, bytes, lists, tuples, dicts with str keys, and numpy
arrays (`arrays.DTYPES`). A numpy scalar comes back as a Python number. Arrays, bytes and text of 32 KiB or more become
frames of their own. A decoded array is a read-only view of its frame. Nothing is pickled. A hostile
record raises CodecError before it takes memory (`limits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from transports.base import Frames
from transports.codec import arrays
from transports.codec.limits import MAX_DEPTH, MAX_FRAMES, MAX_HEAD_BYTES, MAX_RECORD_BYTES, MAX_VALUES, check_structure
from transports.errors import CodecError, CodecLimitExceeded, MalformedRecord, UnsupportedValue

OUT_OF_BAND_BYTES = 32 << 10
"""From this size on, a value has a frame of its own."""

_ARRAY, _BYTES, _TEXT, _TUPLE = 1, 3, 4, 6


class _TupleMark(tuple[()]):
    """The first element of a list that encodes a tuple; an empty tuple, because `_has_tuples` looks into it."""

    __slots__ = ()


_CHECKED_TYPES = frozenset((dict, list, _TupleMark, msgpack.Timestamp))
_RESTORED_TYPES = frozenset((dict, list, _TupleMark))


def encode(value: object, *, lone_surrogates: bool = True) -> Frames:
    """Return the frames of a record. They view the arrays of `value`, which must not change until the record is put.

    Without `lone_surrogates`, half of a character (a lone surrogate) in a text is an unsupported value.

    Raises UnsupportedValue and CodecLimitExceeded, with the path of the bad value.
    """
    text_errors = "surrogatepass" if lone_surrogates else "strict"
    encoder = _Encoder(text_errors)
    try:
        packable = encoder.to_packable(value, 0)
        head: bytes = msgpack.packb(packable, use_bin_type=True, unicode_errors=text_errors)
    except UnicodeEncodeError as error:
        start = max(error.start - 20, 0)
        raise UnsupportedValue(
            f"the text {error.object[start : error.start + 20]!a} has half of a character (a lone surrogate)"
        ) from None
    frames: Frames = (head, *encoder.blobs)
    _check_sizes(frames)
    return frames


def decode(frames: Sequence[bytes | bytearray | memoryview], *, lone_surrogates: bool = True) -> Any:
    """Return the value of a record. Raises MalformedRecord and CodecLimitExceeded, and no other error.

    Without `lone_surrogates`, half of a character (a lone surrogate) in a text makes the record malformed.
    """
    if not frames:
        raise MalformedRecord("the record has no frames; it needs at least a head")
    _check_sizes(frames)
    head = bytes(frames[0])
    check_structure(head)
    text_errors = "surrogatepass" if lone_surrogates else "strict"
    decoder = _Decoder(frames, text_errors)
    try:
        value = msgpack.unpackb(
            head, raw=False, unicode_errors=text_errors, strict_map_key=True, ext_hook=decoder.decode_extension
        )
    except CodecError:
        raise
    except (ValueError, TypeError) as error:
        raise MalformedRecord(f"the head frame is not what this codec writes: {error}") from None
    return _restore_tuples(value) if _has_tuples(value) else value


class _Encoder:
    """Turns values into what msgpack packs, and moves large ones into frames of their own."""

    def __init__(self, text_errors: str) -> None:
        self._text_errors = text_errors
        self.blobs: list[bytes | memoryview] = []
        self.value_count = 1

    def to_packable(self, value: Any, depth: int) -> Any:
        """Return what msgpack packs for a value at this depth."""
        value_type = type(value)
        if value_type is str:
            return (
                value
                if len(value) < OUT_OF_BAND_BYTES
                else self._out_of_band(_TEXT, value.encode("utf-8", self._text_errors))
            )
        if value_type is float or value_type is bool or value is None:
            return value
        if value_type is int:
            if not -(1 << 63) <= value < (1 << 64):
                raise UnsupportedValue(f"an integer of {value.bit_length()} bits; at most 64 are carried")
            return value
        if value_type is dict or value_type is list or value_type is tuple:
            if depth >= MAX_DEPTH:
                raise CodecLimitExceeded(f"the value nests deeper than {MAX_DEPTH} levels")
            if value_type is dict:
                return self._map_to_packable(value, depth + 1)
            items = self._items_to_packable(value, depth + 1)
            if value_type is list:
                return items
            self._count_values(1)
            return [msgpack.ExtType(_TUPLE, b""), *items]
        return self._leaf_to_packable(value)

    def _count_values(self, values: int) -> None:
        """Count as check_structure does, so that every encoded record can be decoded."""
        self.value_count += values
        if self.value_count > MAX_VALUES:
            raise CodecLimitExceeded(f"more than {MAX_VALUES} values; send numbers as numpy arrays")

    def _map_to_packable(self, values: dict[Any, Any], depth: int) -> dict[str, Any]:
        self._count_values(2 * len(values))
        packable = {}
        for key, value in values.items():
            if type(key) is not str:
                raise UnsupportedValue(f"a dict key of type {type(key).__qualname__}; keys must be str")
            try:
                packable[key] = self.to_packable(value, depth)
            except CodecError as error:
                error.prepend_path(key)
                raise
        return packable

    def _items_to_packable(self, values: Sequence[Any], depth: int) -> list[Any]:
        self._count_values(len(values))
        packable: list[Any] = []
        for value in values:
            try:
                packable.append(self.to_packable(value, depth))
            except CodecError as error:
                error.prepend_path(len(packable))
                raise
        return packable

    def _leaf_to_packable(self, value: Any) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            data = bytes(value)
            return data if len(data) < OUT_OF_BAND_BYTES else self._out_of_band(_BYTES, data)
        if type(value) in (np.ndarray, np.memmap):
            return self._array_to_packable(arrays.to_wire_array(value))
        if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32 | np.float64):
            return value.item()
        raise UnsupportedValue(
            f"a value of type {type(value).__module__}.{type(value).__qualname__}; turn it into plain values, as in "
            "JSON, or into numpy arrays"
        )

    def _array_to_packable(self, array: arrays.Array) -> Any:
        raw = arrays.raw_bytes(array)
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return msgpack.ExtType(_ARRAY, arrays.pack_description(array, 0) + raw)
        self.blobs.append(raw)
        return msgpack.ExtType(_ARRAY, arrays.pack_description(array, len(self.blobs)))

    def _out_of_band(self, extension: int, data: bytes) -> Any:
        self.blobs.append(data)
        return msgpack.ExtType(extension, len(self.blobs).to_bytes(2, "little"))


class _Decoder:
    """Turns the extensions that msgpack meets into values."""

    def __init__(self, frames: Sequence[bytes | bytearray | memoryview], text_errors: str) -> None:
        self.frames = frames
        self._text_errors = text_errors
        self._taken_frames: set[int] = set()

    def decode_extension(self, code: int, data: bytes) -> Any:
        """Return the value of a msgpack extension. Raises MalformedRecord."""
        if code == _ARRAY:
            return arrays.read_array(data, self._take_frame)
        if code == _BYTES:
            view = self._take_referred_frame(data)
            original = self.frames[int.from_bytes(data, "little")]
            return original if isinstance(original, bytes) else bytes(view)
        if code == _TEXT:
            return str(self._take_referred_frame(data), "utf-8", self._text_errors)
        if code == _TUPLE and not data:
            return _TupleMark()
        raise MalformedRecord(f"the head frame uses the msgpack extension {code}, which this codec does not write")

    def _take_referred_frame(self, reference: bytes) -> memoryview:
        if len(reference) != 2:
            raise MalformedRecord("a reference to a frame is damaged")
        return self._take_frame(int.from_bytes(reference, "little"))

    def _take_frame(self, index: int) -> memoryview:
        """Return the bytes of a frame, read-only, and only once: a small head must not copy a frame many times."""
        if not 0 < index < len(self.frames):
            raise MalformedRecord(f"the head refers to frame {index}, and the record has {len(self.frames)}")
        if index in self._taken_frames:
            raise MalformedRecord(f"the head refers to frame {index} more than once")
        self._taken_frames.add(index)
        return memoryview(self.frames[index]).toreadonly().cast("B")


def _has_tuples(value: Any) -> bool:
    """Return whether an unpacked value has a tuple.

    Raises MalformedRecord or CodecLimitExceeded if it nests too deep, has keys that are not str, or has a timestamp.
    """
    has_tuples = False
    nodes: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        for node in nodes:
            if type(node) is dict:
                for key in node:
                    if type(key) is not str:
                        raise MalformedRecord("a dict key is not a str")
        nodes = [
            inner
            for node in nodes
            for inner in (node.values() if type(node) is dict else node)
            if type(inner) in _CHECKED_TYPES
        ]
        if not nodes:
            return has_tuples
        types = set(map(type, nodes))
        has_tuples = has_tuples or _TupleMark in types
        if msgpack.Timestamp in types:
            raise MalformedRecord("the head frame holds a msgpack timestamp, which this codec does not write")
    raise CodecLimitExceeded(f"the record nests deeper than {MAX_DEPTH} levels")


def _restore_tuples(node: Any) -> Any:
    """Replace each list that starts with a mark by a tuple. The depth was checked, so the recursion is bounded."""
    if type(node) is _TupleMark:
        raise MalformedRecord("the mark of a tuple is not at the start of a list")
    if type(node) is dict:
        for key, value in node.items():
            if type(value) in _RESTORED_TYPES:
                node[key] = _restore_tuples(value)
        return node
    is_tuple = bool(node) and type(node[0]) is _TupleMark
    items = [_restore_tuples(value) if type(value) in _RESTORED_TYPES else value for value in node[is_tuple:]]
    return tuple(items) if is_tuple else items


def _check_sizes(frames: Sequence[bytes | bytearray | memoryview]) -> None:
    if len(frames) > MAX_FRAMES:
        raise CodecLimitExceeded(f"{len(frames)} frames; at most {MAX_FRAMES} are carried")
    sizes = [memoryview(frame).nbytes for frame in frames]
    if sizes[0] > MAX_HEAD_BYTES:
        raise CodecLimitExceeded(f"a head of {sizes[0]} bytes; at most {MAX_HEAD_BYTES}: send numbers as numpy arrays")
    if sum(sizes) > MAX_RECORD_BYTES:
        raise CodecLimitExceeded(f"a record of {sum(sizes)} bytes; at most {MAX_RECORD_BYTES} are carried")
