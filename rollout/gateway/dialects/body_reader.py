"""Reads the bodies of one endpoint's requests, and parses only what follows the part that an earlier body had, too.

A program sends the whole conversation at every turn, so a body mostly begins with the bytes of the body before. A part
that is known is recognised by the hashes of its blocks; the bytes themselves are not kept, because a conversation with
images has many megabytes.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import numpy as np

from rollout.api_keys import hide_keys_in_json
from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import split_list, split_object
from rollout.gateway.dialects.request_body import BLOCK_BYTES, RequestBody

_MAX_HEADS = 4
"""The number of latest bodies that are remembered; a program may have several conversations at the same time."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class _Head(Generic[_T]):
    """The beginning of a body, up to the end of the last item of its list.

    Attributes:
        length: the number of bytes.
        blocks: the hashes of the whole blocks in it.
        rest: the bytes after these blocks.
        fields: the keys before the list.
        items: what was read from the items of the list.
    """

    length: int
    blocks: tuple[bytes, ...]
    rest: bytes | bytearray
    fields: Mapping[str, msgspec.Raw]
    items: list[_T]

    def begins(self, body: RequestBody) -> bool:
        """Whether a body begins with these bytes."""
        whole = len(self.blocks)
        return (
            self.length < len(body.data)
            and body.data[whole * BLOCK_BYTES : self.length] == self.rest
            and body.blocks[:whole] == self.blocks
        )


class BodyReader(Generic[_T]):
    """Reads bodies that are an object with one long list. No key of an endpoint is in what it reads."""

    def __init__(self, key: str, read_item: Callable[[msgspec.Raw, str], _T]) -> None:
        """Read the list at `key`; `read_item` gets the JSON of each item, and its place for errors."""
        self._key = key
        self._opening = b'{"' + key.encode() + b'":['
        self._read_item = read_item
        self._heads: deque[_Head[_T]] = deque(maxlen=_MAX_HEADS)

    def read(self, body: bytes | RequestBody) -> tuple[dict[str, msgspec.Raw], list[_T] | None]:
        """Return the JSON of the keys beside the list, and what was read from its items.

        If the value of the key is absent or no list, it stays among the keys, and the items are None.

        Raises:
            RequestRefused: the body is no JSON object, or an item cannot be read.
        """
        if isinstance(body, bytes):
            body = RequestBody(body)
        for head in reversed(self._heads):
            if head.begins(body) and body.data[head.length : head.length + 1] in (b",", b"]"):
                return self._read_rest(body, head)
        fields = split_object(body.data)
        raw = fields.get(self._key)
        if raw is None or bytes(memoryview(raw)[:1]) != b"[":
            return {name: _clean(value) for name, value in fields.items()}, None
        names = list(fields)
        del fields[self._key]
        fields = {name: _clean(value) for name, value in fields.items()}
        before = {name: fields[name] for name in names[: names.index(self._key)]}
        items = self._read_items(raw, [])
        self._remember(body, _end_of_items(body.data, raw), before, items)
        return fields, items

    def _read_rest(self, body: RequestBody, head: _Head[_T]) -> tuple[dict[str, msgspec.Raw], list[_T]]:
        """Read what follows a known beginning, which ends with an item of the list."""
        is_longer = body.data[head.length : head.length + 1] == b","
        data = self._opening + body.data[head.length + is_longer :]
        try:
            fields = split_object(data)
        except RequestRefused:
            split_object(body.data)  # raises the error with its place in the whole body
            raise
        raw = fields.pop(self._key)
        items = self._read_items(raw, head.items)
        if is_longer:
            end = _end_of_items(data, raw) - len(self._opening) + head.length + 1
            self._remember(body, end, head.fields, items)
        return {**head.fields, **{name: _clean(value) for name, value in fields.items()}}, items

    def _read_items(self, raw: msgspec.Raw, known: list[_T]) -> list[_T]:
        raws = split_list(raw, self._key)
        if not raws:
            return known
        return known + [
            self._read_item(_clean(item), f"{self._key}[{index}]") for index, item in enumerate(raws, len(known))
        ]

    def _remember(self, body: RequestBody, length: int, fields: Mapping[str, msgspec.Raw], items: list[_T]) -> None:
        """Remember the first `length` bytes of a body, which end with the last of these items."""
        if items:
            whole = length // BLOCK_BYTES
            rest = body.data[whole * BLOCK_BYTES : length]
            self._heads.append(_Head(length, body.blocks[:whole], rest, fields, items))


def _clean(raw: msgspec.Raw) -> msgspec.Raw:
    """Return JSON without keys of endpoints. It is a copy, so that it does not keep the whole body in memory."""
    return msgspec.Raw(hide_keys_in_json(bytes(raw)))


def _end_of_items(data: bytes | bytearray, raw: msgspec.Raw) -> int:
    """Return the position in `data` after the last item of the list `raw`, which is a part of it."""
    end = _address(raw) - _address(data) + len(memoryview(raw)) - 1
    while data[end - 1 : end].isspace():
        end -= 1
    return end


def _address(buffer: bytes | bytearray | msgspec.Raw) -> int:
    address: int = np.frombuffer(memoryview(buffer), np.uint8).__array_interface__["data"][0]
    return address
