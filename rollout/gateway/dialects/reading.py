"""Reads the JSON of requests: splits a body into its keys and items, and remembers items that were read before.

A program sends the whole conversation at every turn. An item with the same bytes as before is found by these bytes, and
is not parsed again. The bytes of large items, such as images, are not kept; only their hash is.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import orjson

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.request_body import hash_bytes

_MAX_KEPT_BYTES = 1024
"""Larger items are known by their hash."""
_MAX_ITEMS = 16_384
_MAX_NEW_BYTES = 512 << 20
"""The limit for the bytes of different items in one attempt, so that a program in a loop does not fill the memory."""
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

_T = TypeVar("_T")


def split_object(body: bytes | bytearray, parameter: str | None = None) -> dict[str, msgspec.Raw]:
    """Return the JSON of each value of a JSON object, by key. Raises RequestRefused if it is no JSON object."""
    try:
        return _decode_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(
            f"{parameter or 'the body of the request'} is not a JSON object: {error}.", parameter=parameter
        ) from None


def split_list(raw: msgspec.Raw | bytes, parameter: str) -> list[msgspec.Raw]:
    """Return the JSON of each item of a JSON list. Raises RequestRefused if it is no list."""
    try:
        return _decode_list(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestRefused(f"{parameter} is not a list.", parameter=parameter) from None


def parse(raw: msgspec.Raw | bytes, parameter: str) -> Any:
    """Parse JSON. Raises RequestRefused if it cannot be parsed."""
    try:
        return orjson.loads(memoryview(raw))
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"{parameter} cannot be read as JSON: {error}.", parameter=parameter) from None


class KnownItems(Generic[_T]):
    """Remembers what was read from each item of one attempt's requests, by the bytes of the item."""

    def __init__(self, read: Callable[[Any, str], _T]) -> None:
        """Remember the results of `read`, which gets the parsed JSON of an item and its place for errors."""
        self._read = read
        self._known: dict[bytes, _T] = {}
        self._new_bytes = 0

    def read(self, raw: msgspec.Raw, place: str) -> _T:
        """Return what was read from these bytes before, or read them. Raises the errors of `read`."""
        data = bytes(raw)
        key = data if len(data) <= _MAX_KEPT_BYTES else hash_bytes(data)
        found = self._known.get(key)
        if found is None:
            self._new_bytes += len(data)
            if self._new_bytes > _MAX_NEW_BYTES:
                raise RequestRefused(
                    f"{place}: the program has sent more than {_MAX_NEW_BYTES:,} bytes of new messages in this "
                    "rollout. Does it send different large messages in a loop?",
                    parameter=place,
                )
            if len(self._known) >= _MAX_ITEMS:
                self._known.clear()
            found = self._known[key] = self._read(parse(data, place), place)
        return found


def require(value: Any, kind: type | tuple[type, ...], place: str, expected: str) -> Any:
    """Return a value if it is of this kind, and not a bool in place of a number. Raises RequestRefused."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    raise RequestRefused(f"{place} must be {expected}.", parameter=place)


def read_image_url(url: Any, place: str) -> dict[str, Any]:
    """Return the part of a message for an image. Only `data:` URLs are accepted; others would be read by the worker."""
    if isinstance(url, str) and url[:5].lower() == "data:":
        return {"type": "image_url", "image_url": {"url": url}}
    scheme = url.partition(":")[0][:16] if isinstance(url, str) and ":" in url else "no"
    raise RequestRefused(
        f"{place} has an image with the scheme {scheme!r}; only `data:` URLs are accepted. Send the bytes of the image "
        "as data:image/png;base64,… .",
        parameter=place,
    )
