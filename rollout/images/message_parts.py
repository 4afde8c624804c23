"""Where images are in chat messages, and how a part is rewritten to the one canonical form.

    {"type": "image_url", "image_url": {"url": URL}}

Only `content` is looked into, of every message and of tool results nested in it; tools, metadata and schemas are never
touched. Parts may be dicts or typed objects with the same attributes.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.images.errors import ImageError

_DEEPEST = 16  # levels of tool results inside tool results; more is a structure that contains itself

Undo = list[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image part of a conversation.

    Attributes:
        part: the object to rewrite.
        key: the key or attribute of the part that holds its image, `image_url` or `image`.
        source: the image as it was given: a URL, bytes, a Pillow image, or something that is none of these.
    """

    message_index: int
    part_index: int
    part: Any
    key: str
    source: Any


def find_image_parts(messages: Sequence[Any]) -> list[ImagePart]:
    """Every image part in order of appearance; nothing is changed.

    Raises:
        ImageError: content is nested deeper than any real conversation.
    """
    found: list[ImagePart] = []
    for message_index, message in enumerate(messages):
        content = _get(message, "content")
        if isinstance(content, list | tuple):
            for part_index, part in enumerate(content):
                try:
                    for image, key in _images_in(part, 0):
                        source = _get(image, key) if key == "image" else _url_of(_get(image, key))
                        found.append(ImagePart(message_index, part_index, image, key, source))
                except RecursionError:
                    raise ImageError(
                        "content is nested in itself", message_index=message_index, part_index=part_index
                    ) from None
    return found


def rewrite(image: ImagePart, url: str, undo: Undo) -> bool:
    """Give the part its canonical form; whether anything changed. How to take it back is appended to `undo`.

    Raises:
        ImageError: the part does not let itself be changed.
    """
    changes = len(undo)
    try:
        try:
            _make_canonical(image, url, undo)
        except Exception:  # a typed part may have no room for the canonical form, and then keeps its own
            if isinstance(image.part, MutableMapping):
                raise
            roll_back(undo, changes)
            _assign(image.part, image.key, url, undo)
    except Exception as error:
        raise ImageError(
            f"the part is a {type(image.part).__name__} that cannot be changed in place ({str(error)[:200]}); give a"
            " dict or a mutable object",
            message_index=image.message_index,
            part_index=image.part_index,
        ) from error
    return len(undo) > changes


def roll_back(undo: Undo, to: int = 0) -> None:
    """Take back every change but the first `to`, the latest first."""
    while len(undo) > to:
        undo.pop()()


def _images_in(part: Any, depth: int) -> Iterator[tuple[Any, str]]:
    if isinstance(part, str):
        return
    kind = _get(part, "type")
    if kind in ("image_url", "input_image"):
        yield part, "image_url"
    elif kind == "image":
        yield part, "image"
    elif kind is None and _is_given(_get(part, "image_url")):
        yield part, "image_url"
    elif kind is None and _is_given(_get(part, "image")):
        yield part, "image"
    else:
        nested = _get(part, "content")
        if isinstance(nested, list | tuple):
            if depth == _DEEPEST:
                raise RecursionError
            for inner in nested:
                yield from _images_in(inner, depth + 1)


def _is_given(value: Any) -> bool:
    # Rows of a dataset have every column in every row: what is None or empty there is not an image.
    return value is not None and not (isinstance(value, str | bytes | Mapping | list | tuple) and not value)


def _make_canonical(image: ImagePart, url: str, undo: Undo) -> None:
    part, inner = image.part, _get(image.part, "image_url") if image.key == "image_url" else None
    if isinstance(inner, MutableMapping) or hasattr(inner, "url"):
        _assign(inner, "url", url, undo)
    else:
        _assign(part, "image_url", {**inner, "url": url} if isinstance(inner, Mapping) else {"url": url}, undo)
    _assign(part, "type", "image_url", undo)
    if image.key == "image":
        _drop(part, "image", undo)


def _get(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    return getattr(holder, name, None)


def _url_of(value: Any) -> Any:
    return value.get("url") if isinstance(value, Mapping) else getattr(value, "url", value)


def _assign(holder: Any, name: str, value: Any, undo: Undo) -> None:
    if isinstance(holder, MutableMapping):
        if name not in holder or holder[name] != value:
            undo.append(_restore(holder))
            holder[name] = value
    elif not hasattr(holder, name):
        setattr(holder, name, value)
        undo.append(lambda: delattr(holder, name))
    elif (before := getattr(holder, name)) != value:
        setattr(holder, name, value)
        undo.append(lambda: setattr(holder, name, before))


def _drop(holder: Any, name: str, undo: Undo) -> None:
    if isinstance(holder, MutableMapping):
        undo.append(_restore(holder))
        holder.pop(name, None)
    else:
        _assign(holder, name, None, undo)


def _restore(holder: MutableMapping[str, Any]) -> Callable[[], None]:
    original = dict(holder)

    def restore() -> None:
        holder.clear()
        holder.update(original)

    return restore
