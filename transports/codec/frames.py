"""Values to frames and back: one msgpack head, then large blobs outside of it, each a frame of its own.

Carried: None, bool, int (64 bits), float, str, bytes, lists, tuples, dicts with str keys, numpy arrays and torch
tensors (`arrays.DTYPES`), numpy scalars (they come back as Python numbers), and the dataclasses and enums given
to `register_type`. Arrays, bytes and text of 32 KiB or more become frames of their own; a decoded array is a read-only
view of its frame. Nothing is ever pickled. A hostile record raises CodecError before it allocates memory (`limits`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import msgpack  # type: ignore[import-untyped]
import numpy as np

from transports.base import Frames
from transports.codec import arrays
from transports.codec.limits import MAX_DEPTH, MAX_FRAMES, MAX_HEAD_BYTES, MAX_RECORD_BYTES, MAX_VALUES, check_structure
from transports.errors import CodecError, CodecLimitExceeded, MalformedRecord, UnknownType, UnsupportedValue

OUT_OF_BAND_BYTES = 32 << 10

_ARRAY, _TENSOR, _BYTES, _TEXT, _ENUM, _TUPLE, _DATACLASS = range(1, 8)
_EXTENSION_CODES = frozenset(range(_ARRAY, _DATACLASS + 1))
T = TypeVar("T", bound=type)
RegisteredT = TypeVar("RegisteredT")


class _RegisteredDataclass(NamedTuple):
    name: str
    type: Any
    fields: tuple[str, ...]


class _ContainerMark(NamedTuple):
    """The first element of a list that encodes a tuple (`registered` is None) or a dataclass."""

    registered: _RegisteredDataclass | None


_CHECKED_TYPES = frozenset((dict, list, _ContainerMark, msgpack.Timestamp))
_NEEDS_RESTORING = frozenset((dict, list, _ContainerMark))
_dataclasses: dict[str, _RegisteredDataclass] = {}
_enums: dict[str, type[Enum]] = {}
_names_by_type: dict[type, str] = {}


def register_type(name: str) -> Callable[[T], T]:
    """A class decorator: carry this dataclass, by its init fields, or this enum, by its member names, as `name`."""

    def register(cls: T) -> T:
        registered_type = _dataclasses[name].type if name in _dataclasses else _enums.get(name, cls)
        if registered_type.__qualname__ != cls.__qualname__:
            raise ValueError(f"{name!r} already stands for {registered_type.__qualname__}")
        if dataclasses.is_dataclass(cls):
            fields = tuple(entry.name for entry in dataclasses.fields(cls) if entry.init)
            _dataclasses[name] = _RegisteredDataclass(name, cls, fields)
        elif issubclass(cls, Enum):
            _enums[name] = cls
        else:
            raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an enum")
        _names_by_type[cls] = name
        return cls

    return register


def encode(value: object, *, lone_surrogates: bool = True) -> Frames:
    """The frames of a record. They view the arrays of `value`, which must not change until the record is put.

    Without `lone_surrogates`, a text with half of a character is an unsupported value.

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
    """The value of a record. Raises MalformedRecord, CodecLimitExceeded and UnknownType, and no other error.

    Without `lone_surrogates`, a record is malformed if a text in it has half of a character.
    """
    if not frames:
        raise MalformedRecord("a record has at least a head frame")
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
    return decoder.restore(value) if _contains_marks(value) else value


class _Encoder:
    """Turns values into what msgpack packs, and moves large ones into frames of their own."""

    def __init__(self, text_errors: str) -> None:
        self._text_errors = text_errors
        self.blobs: list[bytes | memoryview] = []
        self.value_count = 1

    def to_packable(self, value: Any, depth: int) -> Any:
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
        if value_type is dict or value_type is list or value_type is tuple or value_type in _names_by_type:
            return self._structure_to_packable(value_type, value, depth)
        return self._leaf_to_packable(value)

    def _structure_to_packable(self, value_type: type, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH - 2:  # a dataclass takes two levels
            raise CodecLimitExceeded(f"the value nests deeper than {MAX_DEPTH} levels")
        if value_type is dict:
            return self._map_to_packable(value.items(), len(value), depth + 1)
        if value_type is list:
            return self._items_to_packable(value, depth + 1)
        if value_type is tuple:
            self._count_values(1)
            return [msgpack.ExtType(_TUPLE, b""), *self._items_to_packable(value, depth + 1)]
        name = _encode_text(_names_by_type[value_type])
        if issubclass(value_type, Enum):
            return msgpack.ExtType(_ENUM, name + b"\0" + _encode_text(value.name))
        self._count_values(2)
        fields = _dataclasses[_names_by_type[value_type]].fields
        items = ((entry, getattr(value, entry)) for entry in fields)
        return [msgpack.ExtType(_DATACLASS, name), self._map_to_packable(items, len(fields), depth + 2)]

    def _count_values(self, values: int) -> None:
        """Count what check_structure will count, so that every encoded record can be decoded."""
        self.value_count += values
        if self.value_count > MAX_VALUES:
            raise CodecLimitExceeded(f"more than {MAX_VALUES} values; send numbers as numpy arrays")

    def _map_to_packable(self, items: Iterable[tuple[Any, Any]], count: int, depth: int) -> dict[str, Any]:
        self._count_values(2 * count)
        packable = {}
        for key, value in items:
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
            return self._array_to_packable(_ARRAY, arrays.to_wire_array(value), value.dtype.name)
        if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32 | np.float64):
            return value.item()
        if arrays.is_tensor(value):
            array, dtype = arrays.tensor_to_array(value)
            return self._array_to_packable(_TENSOR, array, dtype)
        raise UnsupportedValue(
            f"a value of type {type(value).__module__}.{type(value).__qualname__}; "
            "register dataclasses and enums with transports.codec.register_type, and turn others into plain values"
        )

    def _array_to_packable(self, extension: int, array: arrays.Array, dtype: str) -> Any:
        raw = arrays.raw_bytes(array)
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return msgpack.ExtType(extension, arrays.pack_description(array, dtype, 0) + raw)
        self.blobs.append(raw)
        return msgpack.ExtType(extension, arrays.pack_description(array, dtype, len(self.blobs)))

    def _out_of_band(self, extension: int, data: bytes) -> Any:
        self.blobs.append(data)
        return msgpack.ExtType(extension, len(self.blobs).to_bytes(2, "little"))


class _Decoder:
    """Turns what msgpack unpacked back into values. Its depth was checked, so recursion is bounded."""

    def __init__(self, frames: Sequence[bytes | bytearray | memoryview], text_errors: str) -> None:
        self.frames = frames
        self._text_errors = text_errors
        self._taken_frames: set[int] = set()

    def decode_extension(self, code: int, data: bytes) -> Any:
        if code == _ARRAY:
            return arrays.read_array(data, self._take_frame)[0]
        if code == _TENSOR:
            return arrays.array_to_tensor(*arrays.read_array(data, self._take_frame))
        if code == _BYTES:
            view = self._take_referred_frame(data)
            original = self.frames[int.from_bytes(data, "little")]
            return original if isinstance(original, bytes) else bytes(view)
        if code == _TEXT:
            return str(self._take_referred_frame(data), "utf-8", self._text_errors)
        if code == _TUPLE and not data:
            return _ContainerMark(None)
        if code == _ENUM:
            return _decode_enum_member(data)
        if code == _DATACLASS:
            return _ContainerMark(_look_up(_dataclasses, data))
        if code not in _EXTENSION_CODES:
            raise MalformedRecord(f"the head frame uses the msgpack extension {code}, which this codec does not write")
        raise MalformedRecord(f"extension {code} of the head frame is damaged")

    def restore(self, node: Any) -> Any:
        if type(node) is dict:
            for key, value in node.items():
                if type(value) in _NEEDS_RESTORING:
                    node[key] = self._restore_at(key, value)
            return node
        if type(node) is list:
            mark = node.pop(0) if node and type(node[0]) is _ContainerMark else None
            for index, value in enumerate(node):
                if type(value) in _NEEDS_RESTORING:
                    node[index] = self._restore_at(index, value)
            return node if mark is None else _build_container(mark.registered, node)
        raise MalformedRecord("the mark of a tuple or a dataclass stands where none can be")

    def _restore_at(self, key: str | int, value: Any) -> Any:
        try:
            return self.restore(value)
        except CodecError as error:
            error.prepend_path(key)
            raise

    def _take_referred_frame(self, reference: bytes) -> memoryview:
        if len(reference) != 2:
            raise MalformedRecord("a reference to a frame is damaged")
        return self._take_frame(int.from_bytes(reference, "little"))

    def _take_frame(self, index: int) -> memoryview:
        """The bytes of a frame, read-only. Only one value may have them, or a few bytes would copy them many times."""
        if not 0 < index < len(self.frames):
            raise MalformedRecord(f"the head refers to frame {index}, and the record has {len(self.frames)}")
        if index in self._taken_frames:
            raise MalformedRecord(f"the head refers to frame {index} more than once")
        self._taken_frames.add(index)
        return memoryview(self.frames[index]).toreadonly().cast("B")


def _contains_marks(value: Any) -> bool:
    """Whether an unpacked value has a tuple or a dataclass; also refuses too deep nesting and keys that are not str."""
    has_marks = False
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
            return has_marks
        types = set(map(type, nodes))
        if msgpack.Timestamp in types:
            raise MalformedRecord("the head frame holds a msgpack timestamp, which this codec does not write")
        has_marks = has_marks or _ContainerMark in types
    raise CodecLimitExceeded(f"the record nests deeper than {MAX_DEPTH} levels")


def _build_container(registered: _RegisteredDataclass | None, items: list[Any]) -> Any:
    if registered is None:
        return tuple(items)
    try:
        (fields,) = items
        return registered.type(**fields)
    except Exception as error:  # the class may raise anything for bad fields
        raise MalformedRecord(f"{registered.name} refuses the fields that the record holds: {error}") from error


def _decode_enum_member(data: bytes) -> Enum:
    name, _, member = data.partition(b"\0")
    enum = _look_up(_enums, name)
    try:
        return enum[_decode_name(member)]
    except KeyError:
        raise MalformedRecord(f"{_decode_name(name)} has no member {_decode_name(member)!r}") from None


def _look_up(registered: dict[str, RegisteredT], name: bytes) -> RegisteredT:
    try:
        return registered[_decode_name(name)]
    except KeyError:
        raise UnknownType(f"the record holds a {_decode_name(name)!r}, which this process has not registered") from None


def _decode_name(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _check_sizes(frames: Sequence[bytes | bytearray | memoryview]) -> None:
    if len(frames) > MAX_FRAMES:
        raise CodecLimitExceeded(f"{len(frames)} frames; at most {MAX_FRAMES} are carried")
    sizes = [memoryview(frame).nbytes for frame in frames]
    if sizes[0] > MAX_HEAD_BYTES:
        raise CodecLimitExceeded(f"a head of {sizes[0]} bytes; at most {MAX_HEAD_BYTES}: send numbers as numpy arrays")
    if sum(sizes) > MAX_RECORD_BYTES:
        raise CodecLimitExceeded(f"a record of {sum(sizes)} bytes; at most {MAX_RECORD_BYTES} are carried")
