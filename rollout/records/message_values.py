"""Selects the values of a message's content that count towards the size limits: all except images.

Only content parts can have images. A value under the key `image` or `image_url` in another place, for example in the
arguments of a tool call, is counted normally.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from rollout.value_limits import Countable

_IMAGE_NAMES = ("image", "image_url")
_NAMES = frozenset(("type", "text", "thinking", "content", *_IMAGE_NAMES))
"""The usual keys of parts. They are short, so they are not counted."""


def countable_content(content: Any) -> Any:
    """Return what `ValueCounter` counts for a message's content, a part, or the content of a tool's result."""
    return content if isinstance(content, str | bytes | None) else _Content(content)


class _Content(Countable):
    def __init__(self, content: Any) -> None:
        self._content = content

    def counted_values(self) -> Iterator[Any]:
        content = self._content
        if isinstance(content, Sequence) and not isinstance(content, bytearray | memoryview):
            for part in content:
                yield countable_content(part)
            return
        for name, value in _items(content):
            if name not in _NAMES:
                yield name
            if name in _IMAGE_NAMES:
                yield from _counted_of_image(value)
            else:
                yield countable_content(value) if name == "content" else value


def _items(part: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(part, Mapping):
        return part.items()
    is_typed = is_dataclass(part) and not isinstance(part, type)
    names = [field.name for field in fields(part)] if is_typed else ["text", "thinking", "content"]
    return ((name, getattr(part, name, None)) for name in names)


def _counted_of_image(image: Any) -> Iterator[Any]:
    """Yield the values of an image except its URL. Other objects yield nothing: they are images, or refused later."""
    if isinstance(image, Mapping):
        for name, value in image.items():
            if name != "url" or not isinstance(value, str):
                yield from (name, value)
    elif isinstance(image, Sequence) and not isinstance(image, str | bytes | bytearray | memoryview):
        yield from image
