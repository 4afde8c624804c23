"""Values to frames and back: one msgpack head, then large blobs out of band, each a frame of its own.

Carried: None, bool, int (64 bits), float, str, bytes, lists, tuples, dicts with str keys, numpy arrays and torch
tensors (`arrays.DTYPES`), numpy scalars (they come back as Python numbers), and the dataclasses and enums given
to `register_type`. Arrays, bytes and text of 32 KiB or more leave the head; a decoded array is a read-only view
of its frame. Nothing is ever pickled, and a hostile record is a CodecError, not an allocation (`limits`).
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
_EXTENSIONS = frozenset(range(_ARRAY, _DATACLASS + 1))
T = TypeVar("T", bound=type)
V = TypeVar("V")


class _Dataclass(NamedTuple):
    name: str
    type: Any
    fields: tuple[str, ...]


class _Opens(NamedTuple):
    """The first element of a list that stands for a tuple (`of` is None) or for a dataclass."""

    of: _Dataclass | None


_NOTABLE = frozenset((dict, list, _Opens, msgpack.Timestamp))
_NEEDS_RESTORING = frozenset((dict, list, _Opens))
_dataclasses: dict[str, _Dataclass] = {}
_enums: dict[str, type[Enum]] = {}
_names: dict[type, str] = {}


def register_type(name: str) -> Callable[[T], T]:
    """A class decorator: carry this dataclass, by its init fields, or this enum, by its member names, as `name`."""

    def register(cls: T) -> T:
        known = _dataclasses[name].type if name in _dataclasses else _enums.get(name, cls)
        if known.__qualname__ != cls.__qualname__:
            raise ValueError(f"{name!r} already stands for {known.__qualname__}")
        if dataclasses.is_dataclass(cls):
            fields = tuple(entry.name for entry in dataclasses.fields(cls) if entry.init)
            _dataclasses[name] = _Dataclass(name, cls, fields)
        elif issubclass(cls, Enum):
            _enums[name] = cls
        else:
            raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an enum")
        _names[cls] = name
        return cls

    return register


def encode(value: object) -> Frames:
    """The frames of a record. They view the arrays of `value`, which must not change until the record is put.

    Raises UnsupportedValue and CodecLimitExceeded, naming the place.
    """
    encoder = _Encoder()
    lowered = encoder.lower(value, 0)
    head: bytes = msgpack.packb(lowered, use_bin_type=True, unicode_errors="surrogatepass")
    frames: Frames = (head, *encoder.blobs)
    _check_sizes(frames)
    return frames


def decode(frames: Sequence[bytes | bytearray | memoryview]) -> Any:
    """The value of a record. Raises MalformedRecord, CodecLimitExceeded and UnknownType, and no other error."""
    if not frames:
        raise MalformedRecord("a record has at least a head frame")
    _check_sizes(frames)
    head = bytes(frames[0])
    check_structure(head)
    decoder = _Decoder(frames)
    try:
        value = msgpack.unpackb(
            head, raw=False, unicode_errors="surrogatepass", strict_map_key=True, ext_hook=decoder.extension
        )
    except CodecError:
        raise
    except (ValueError, TypeError) as error:
        raise MalformedRecord(f"the head frame is not what this codec writes: {error}") from None
    return decoder.restore(value) if _is_marked(value) else value


class _Encoder:
    """Turns values into what msgpack packs, moving what is large out of band."""

    def __init__(self) -> None:
        self.blobs: list[bytes | memoryview] = []
        self.values = 1

    def lower(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return value if len(value) < OUT_OF_BAND_BYTES else self._out_of_band(_TEXT, _utf8(value))
        if kind is float or kind is bool or value is None:
            return value
        if kind is int:
            if not -(1 << 63) <= value < (1 << 64):
                raise UnsupportedValue(f"an integer of {value.bit_length()} bits; at most 64 are carried")
            return value
        if kind is dict or kind is list or kind is tuple or kind in _names:
            return self._lower_structure(kind, value, depth)
        return self._lower_leaf(value)

    def _lower_structure(self, kind: type, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH - 2:  # a dataclass takes two levels
            raise CodecLimitExceeded(f"the value nests deeper than {MAX_DEPTH} levels")
        if kind is dict:
            return self._lower_map(value.items(), len(value), depth + 1)
        if kind is list:
            return self._lower_items(value, depth + 1)
        if kind is tuple:
            self._count(1)
            return [msgpack.ExtType(_TUPLE, b""), *self._lower_items(value, depth + 1)]
        name = _utf8(_names[kind])
        if issubclass(kind, Enum):
            return msgpack.ExtType(_ENUM, name + b"\0" + _utf8(value.name))
        self._count(2)
        fields = _dataclasses[_names[kind]].fields
        entries = ((entry, getattr(value, entry)) for entry in fields)
        return [msgpack.ExtType(_DATACLASS, name), self._lower_map(entries, len(fields), depth + 2)]

    def _count(self, values: int) -> None:
        """Count what check_structure will count, so that whatever is encoded can be decoded."""
        self.values += values
        if self.values > MAX_VALUES:
            raise CodecLimitExceeded(f"more than {MAX_VALUES} values; send numbers as numpy arrays")

    def _lower_map(self, entries: Iterable[tuple[Any, Any]], count: int, depth: int) -> dict[str, Any]:
        self._count(2 * count)
        lowered = {}
        for key, value in entries:
            if type(key) is not str:
                raise UnsupportedValue(f"a dict key of type {type(key).__qualname__}; keys must be str")
            try:
                lowered[key] = self.lower(value, depth)
            except CodecError as error:
                error.within(key)
                raise
        return lowered

    def _lower_items(self, values: Sequence[Any], depth: int) -> list[Any]:
        self._count(len(values))
        lowered: list[Any] = []
        for value in values:
            try:
                lowered.append(self.lower(value, depth))
            except CodecError as error:
                error.within(len(lowered))
                raise
        return lowered

    def _lower_leaf(self, value: Any) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            data = bytes(value)
            return data if len(data) < OUT_OF_BAND_BYTES else self._out_of_band(_BYTES, data)
        if type(value) in (np.ndarray, np.memmap):
            return self._lower_array(_ARRAY, arrays.plain_array(value), value.dtype.name)
        if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32 | np.float64):
            return value.item()
        if arrays.is_tensor(value):
            array, dtype = arrays.array_of_tensor(value)
            return self._lower_array(_TENSOR, array, dtype)
        raise UnsupportedValue(
            f"a value of type {type(value).__module__}.{type(value).__qualname__}; "
            "register dataclasses and enums with transports.codec.register_type, and turn others into plain values"
        )

    def _lower_array(self, extension: int, array: arrays.Array, dtype: str) -> Any:
        raw = arrays.raw_bytes(array)
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return msgpack.ExtType(extension, arrays.describe(array, dtype, 0) + raw)
        self.blobs.append(raw)
        return msgpack.ExtType(extension, arrays.describe(array, dtype, len(self.blobs)))

    def _out_of_band(self, extension: int, data: bytes) -> Any:
        self.blobs.append(data)
        return msgpack.ExtType(extension, len(self.blobs).to_bytes(2, "little"))


class _Decoder:
    """Turns what msgpack unpacked back into values. Its depth was checked, so recursion is bounded."""

    def __init__(self, frames: Sequence[bytes | bytearray | memoryview]) -> None:
        self.frames = frames

    def extension(self, code: int, data: bytes) -> Any:
        if code == _ARRAY:
            return arrays.read_array(data, self.frames)[0]
        if code == _TENSOR:
            return arrays.tensor_of_array(*arrays.read_array(data, self.frames))
        if code == _BYTES:
            view = self._blob(data)
            original = self.frames[int.from_bytes(data, "little")]
            return original if isinstance(original, bytes) else bytes(view)
        if code == _TEXT:
            return str(self._blob(data), "utf-8", "surrogatepass")
        if code == _TUPLE and not data:
            return _Opens(None)
        if code == _ENUM:
            return _member(data)
        if code == _DATACLASS:
            return _Opens(_known(_dataclasses, data))
        if code not in _EXTENSIONS:
            raise MalformedRecord(f"the head frame uses the msgpack extension {code}, which this codec does not write")
        raise MalformedRecord(f"extension {code} of the head frame is damaged")

    def restore(self, node: Any) -> Any:
        if type(node) is dict:
            for key, value in node.items():
                if type(value) in _NEEDS_RESTORING:
                    node[key] = self._restore_at(key, value)
            return node
        if type(node) is list:
            opens = node.pop(0) if node and type(node[0]) is _Opens else None
            for index, value in enumerate(node):
                if type(value) in _NEEDS_RESTORING:
                    node[index] = self._restore_at(index, value)
            return node if opens is None else _close(opens.of, node)
        raise MalformedRecord("the mark of a tuple or a dataclass stands where none can be")

    def _restore_at(self, step: str | int, value: Any) -> Any:
        try:
            return self.restore(value)
        except CodecError as error:
            error.within(step)
            raise

    def _blob(self, reference: bytes) -> memoryview:
        if len(reference) != 2:
            raise MalformedRecord("a reference to a frame is damaged")
        return arrays.blob(self.frames, int.from_bytes(reference, "little"))


def _is_marked(value: Any) -> bool:
    """Whether there is a tuple or a dataclass in what was unpacked, which may not nest too deep; keys must be str."""
    marked = False
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        for node in level:
            if type(node) is dict:
                for key in node:
                    if type(key) is not str:
                        raise MalformedRecord("a dict key is not a str")
        level = [
            inner
            for node in level
            for inner in (node.values() if type(node) is dict else node)
            if type(inner) in _NOTABLE
        ]
        if not level:
            return marked
        kinds = set(map(type, level))
        if msgpack.Timestamp in kinds:
            raise MalformedRecord("the head frame holds a msgpack timestamp, which this codec does not write")
        marked = marked or _Opens in kinds
    raise CodecLimitExceeded(f"the record nests deeper than {MAX_DEPTH} levels")


def _close(dataclass: _Dataclass | None, items: list[Any]) -> Any:
    if dataclass is None:
        return tuple(items)
    try:
        (fields,) = items
        return dataclass.type(**fields)
    except Exception as error:  # whatever the class refuses its fields with
        raise MalformedRecord(f"{dataclass.name} refuses the fields that the record holds: {error}") from error


def _member(data: bytes) -> Enum:
    name, _, member = data.partition(b"\0")
    enum = _known(_enums, name)
    try:
        return enum[_text(member)]
    except KeyError:
        raise MalformedRecord(f"{_text(name)} has no member {_text(member)!r}") from None


def _known(registered: dict[str, V], name: bytes) -> V:
    try:
        return registered[_text(name)]
    except KeyError:
        raise UnknownType(f"the record holds a {_text(name)!r}, which this process has not registered") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _check_sizes(frames: Sequence[bytes | bytearray | memoryview]) -> None:
    if len(frames) > MAX_FRAMES:
        raise CodecLimitExceeded(f"{len(frames)} frames; at most {MAX_FRAMES} are carried")
    sizes = [memoryview(frame).nbytes for frame in frames]
    if sizes[0] > MAX_HEAD_BYTES:
        raise CodecLimitExceeded(f"a head of {sizes[0]} bytes; at most {MAX_HEAD_BYTES}: send numbers as numpy arrays")
    if sum(sizes) > MAX_RECORD_BYTES:
        raise CodecLimitExceeded(f"a record of {sum(sizes)} bytes; at most {MAX_RECORD_BYTES} are carried")
