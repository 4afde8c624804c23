"""Makes the records on a queue readable: records of rollouts, orders, and others.

It shows only the dtype and the shape of an array, and the beginning of a long text or data URI.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import yaml

from rollout.records.kinds import RecordError
from rollout.records.launch_status import LaunchStatus
from rollout.records.wire import decode_queue_record
from rollout.tasks.orders import OrderError, RolloutOrder, decode_order
from transports import Frames
from transports.codec import decode
from transports.errors import CodecError

_MAX_TEXT_LENGTH = 240
_MAX_URI_LENGTH = 48
_MAX_BYTES_LENGTH = 16
_MAX_LIST_LENGTH = 32


class Readable(NamedTuple):
    """A record in plain values that YAML and JSON can represent.

    Attributes:
        kind: the kind of a record on the trajectories queue, or `order`, `other` or `undecodable`.
        rollout: the tag of such a record, or the id of an order's rollout; empty if it is not known.
        content: the content of the record.
    """

    kind: str
    rollout: str
    content: Any


def to_readable(frames: Frames, *, full: bool) -> Readable:
    """Return the frames of a record in readable form; with `full`, nothing is shortened."""
    plain = _Plain(full)
    try:
        value = decode(frames)
    except CodecError as error:
        return Readable("undecodable", "", {"error": plain.text(str(error)), "frames": [plain.of(f) for f in frames]})
    if isinstance(value, dict) and "kind" in value and "schema" in value:
        try:
            record = decode_queue_record(frames)
        except RecordError as error:
            return Readable("undecodable", "", {"error": plain.text(str(error)), "record": plain.of(value)})
        tag = record.tag if isinstance(record, LaunchStatus) else record.header.tag
        return Readable(record.kind, plain.text(tag), plain.of(record))
    try:
        order: RolloutOrder | None = decode_order(frames)
    except OrderError:
        order = None
    if order is not None:
        return Readable("order", plain.text(order.rollout_id), plain.of(value))
    return Readable("other", "", plain.of(value))


def to_plain(value: Any) -> Any:
    """Return a value of a record as plain values that YAML and JSON can represent, with nothing shortened."""
    return _Plain(full=True).of(value)


def printable(text: str) -> str:
    """Return text in which characters that a terminal cannot show are escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def yaml_lines(content: Any) -> list[str]:
    """Return the lines of readable content as YAML. A list of plain values is on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110).splitlines()


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values on one line, so that each number does not take a line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    nested = any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=not nested)


_Dumper.add_representer(list, _represent_list)


class _Plain:
    """Converts values into plain ones."""

    def __init__(self, full: bool) -> None:
        self._full = full

    def of(self, value: Any) -> Any:
        match value:
            case Enum():
                return self.of(value.value)
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case bytes() | bytearray() | memoryview():
                return self._bytes(memoryview(value))
            case Mapping():
                return {self.text(str(key)): self.of(item) for key, item in value.items()}
            case Sequence():
                return self._items(value)
        if dataclasses.is_dataclass(value):
            return self._fields(value)
        return value.tolist() if self._full else _shape(value.dtype, value.shape)  # only numpy's arrays remain

    def text(self, text: str) -> str:
        text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates cannot be encoded
        longest = _MAX_URI_LENGTH if text.startswith("data:") else _MAX_TEXT_LENGTH
        return text if self._full or len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"

    def _bytes(self, data: memoryview) -> str:
        data = data.cast("B")
        if self._full or data.nbytes <= _MAX_BYTES_LENGTH:
            return f"0x{data.hex()}"
        return f"0x{data[:_MAX_BYTES_LENGTH].hex()}… ({data.nbytes:,} bytes)"

    def _items(self, values: Sequence[Any]) -> list[Any]:
        shown = values if self._full else values[:_MAX_LIST_LENGTH]
        items = [self.of(value) for value in shown]
        return items if len(items) == len(values) else [*items, f"… ({len(values):,} items)"]

    def _fields(self, value: Any) -> dict[str, Any]:
        """Return the fields of a dataclass that are not empty."""
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: self.of(held) for name, held in fields.items() if not _is_empty(held)}


def _shape(dtype: object, shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(str(axis) for axis in shape)}]"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | tuple | list) and not value)
