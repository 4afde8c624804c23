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

from rollout.gateway.dialects.reading import split_list, split_object

_BLOCK_BYTES = 16_384
_MAX_HEADS = 4
"""The number of conversations whose last body is remembered."""

_T = TypeVar("_T")


class RequestBody:
    """The body of a request.

    Attributes:
        data: the bytes as they came.
        blocks: the hash of each block. Python's hash has a secret key in each process, so nobody can choose bytes with
            a wanted hash.
    """

    __slots__ = ("_secret", "_substitute", "blocks", "data")

    def __init__(self, data: bytes, secret: str = "") -> None:
        """Take the bytes of a body; `secret` is replaced in all that is read from it."""
        view = memoryview(data)
        self.data = data
        self.blocks = tuple([hash(view[at : at + _BLOCK_BYTES]) for at in range(0, len(data), _BLOCK_BYTES)])
        self._secret = secret.encode()
        self._substitute = b"x" * len(self._secret)

    def read(self, start: int = 0) -> bytes:
        """Return the bytes from a position on, without the secret. All positions stay the same."""
        data = self.data[start:] if start else self.data
        return data.replace(self._secret, self._substitute) if self._secret and self._secret in data else data


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
    blocks: tuple[int, ...]
    rest: bytes
    fields: Mapping[str, msgspec.Raw]
    items: list[_T]

    def begins(self, body: RequestBody) -> bool:
        """Whether a body begins with these bytes."""
        whole = len(self.blocks)
        return (
            self.length < len(body.data)
            and body.data[whole * _BLOCK_BYTES : self.length] == self.rest
            and body.blocks[:whole] == self.blocks
        )


class BodyReader(Generic[_T]):
    """Reads bodies that are an object with one long list."""

    def __init__(self, key: str, read_item: Callable[[msgspec.Raw, str], _T]) -> None:
        """Read the list at `key`; `read_item` gets the JSON of each item, and its place for errors."""
        self._key = key
        self._read_item = read_item
        self._heads: deque[_Head[_T]] = deque(maxlen=_MAX_HEADS)

    def read(self, body: RequestBody) -> tuple[Mapping[str, msgspec.Raw], list[_T] | None]:
        """Return the JSON of the keys beside the list, and what was read from its items.

        If the value of the key is absent or no list, it stays among the keys, and the items are None.

        Raises:
            RequestRefused: the body is no JSON object, or an item cannot be read.
        """
        for head in reversed(self._heads):
            if head.begins(body):
                found = self._read_rest(body, head)
                if found is not None:
                    return found
        data = body.read()
        fields = split_object(data)
        raw = fields.get(self._key)
        if raw is None or bytes(memoryview(raw)[:1]) != b"[":
            return fields, None
        names = list(fields)
        before = names[: names.index(self._key)]
        items = self._read_items(raw, [])
        del fields[self._key]
        self._remember(body, data, 0, raw, {name: _copy(fields[name]) for name in before}, items)
        return fields, items

    def _read_rest(self, body: RequestBody, head: _Head[_T]) -> tuple[Mapping[str, msgspec.Raw], list[_T]] | None:
        """Read what follows a known beginning; None if it is not the rest of the list."""
        rest = body.read(head.length)
        first = rest[:1]
        if first not in (b",", b"]"):
            return None
        opening = b'{"' + self._key.encode() + b'":['
        data = opening + (rest[1:] if first == b"," else rest)
        fields = split_object(data)
        raw = fields.pop(self._key)
        items = self._read_items(raw, head.items)
        # The rest lost its first byte if that was a comma.
        shift = head.length - len(opening) + (first == b",")
        self._remember(body, data, shift, raw, head.fields, items)
        return {**head.fields, **fields}, items

    def _read_items(self, raw: msgspec.Raw, known: list[_T]) -> list[_T]:
        first = len(known)
        return known + [
            self._read_item(item, f"{self._key}[{index}]")
            for index, item in enumerate(split_list(raw, self._key), first)
        ]

    def _remember(
        self,
        body: RequestBody,
        data: bytes,
        shift: int,
        raw: msgspec.Raw,
        fields: Mapping[str, msgspec.Raw],
        items: list[_T],
    ) -> None:
        """Remember a body up to the end of its last item. `data` at a position is the body at this position + shift."""
        length = data.rfind(bytes(raw)) + len(memoryview(raw)) - 1
        while data[length - 1 : length].isspace():
            length -= 1
        if data[length - 1 : length] in (b"[", b""):
            return
        length += shift
        whole = length // _BLOCK_BYTES
        rest = body.data[whole * _BLOCK_BYTES : length]
        self._heads.append(_Head(length, body.blocks[:whole], rest, fields, items))


def _copy(raw: msgspec.Raw) -> msgspec.Raw:
    """Return a copy that does not keep the body in memory."""
    return msgspec.Raw(bytes(raw))
