"""Finds the images in chat messages, and rewrites their parts to the canonical form.

    {"type": "image_url", "image_url": {"url": URL}}

Only the `content` of messages is searched, and the `content` of tool results in it. Tools, metadata and schemas are not
changed. Parts can be dicts, or typed objects with the same attributes.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rollout.images.errors import ImageError
from rollout.value_limits import MAX_VALUES

_MAX_NESTING = 16
"""The maximum number of levels of tool results in tool results. A structure with more probably contains itself."""

UndoList = list[Callable[[], object]]
"""Functions that each undo one change, in the order of the changes."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image part of a conversation.

    Attributes:
        message_index: the index of the message in the conversation.
        part_index: the index of the part in the message's content; for a nested part, the index of the outermost part.
        part: the object to rewrite.
        key: the key or attribute of the part that contains the image: `image_url` or `image`.
        source: the image as it was given: a URL, bytes, a Pillow image, or an object of a wrong type.
    """

    message_index: int
    part_index: int
    part: Any
    key: str
    source: Any


def find_image_parts(messages: Sequence[Any]) -> list[ImagePart]:
    """Return every image part, in order, without changing anything.

    Raises:
        ImageError: content is nested too deep, or has too many parts.
    """
    image_parts: list[ImagePart] = []
    visits = count(1)
    for message_index, message in enumerate(messages):
        content = _get_field(message, "content")
        if isinstance(content, list | tuple):
            for part_index, part in enumerate(content):
                try:
                    for image, key in _find_nested_images(part, 0, visits):
                        source = _get_field(image, key) if key == "image" else _extract_url(_get_field(image, key))
                        image_parts.append(ImagePart(message_index, part_index, image, key, source))
                except RecursionError:
                    raise ImageError(
                        "the content contains itself, has too many levels, or has too many parts",
                        message_index=message_index,
                        part_index=part_index,
                    ) from None
    return image_parts


def rewrite_image_part(image: ImagePart, url: str, undo_list: UndoList) -> bool:
    """Give a part its canonical form, and return whether this changed the part.

    Functions that undo the changes are appended to `undo_list`.

    Raises:
        ImageError: the part cannot be changed.
    """
    undo_count = len(undo_list)
    try:
        try:
            _make_canonical(image, url, undo_list)
        except Exception:  # a typed part without the fields of the canonical form keeps its own form
            if isinstance(image.part, MutableMapping):
                raise
            roll_back(undo_list, undo_count)
            _set_field(image.part, image.key, url, undo_list)
    except Exception as error:
        raise ImageError(
            f"the part is a {type(image.part).__name__} that cannot be changed in place ({str(error)[:200]}); give a"
            " dict or a mutable object",
            message_index=image.message_index,
            part_index=image.part_index,
        ) from error
    return len(undo_list) > undo_count


def roll_back(undo_list: UndoList, keep_first: int = 0) -> None:
    """Undo all changes except the first `keep_first`, starting with the latest."""
    while len(undo_list) > keep_first:
        undo_list.pop()()


def _find_nested_images(part: Any, depth: int, visits: Iterator[int]) -> Iterator[tuple[Any, str]]:
    if next(visits) > MAX_VALUES:
        raise RecursionError
    if isinstance(part, str):
        return
    part_type = _get_field(part, "type")
    if part_type in ("image_url", "input_image"):
        yield part, "image_url"
    elif part_type == "image":
        yield part, "image"
    elif part_type is None and _is_present(_get_field(part, "image_url")):
        yield part, "image_url"
    elif part_type is None and _is_present(_get_field(part, "image")):
        yield part, "image"
    else:
        nested = _get_field(part, "content")
        if isinstance(nested, list | tuple):
            if depth == _MAX_NESTING:
                raise RecursionError
            for inner in nested:
                yield from _find_nested_images(inner, depth + 1, visits)


def _is_present(value: Any) -> bool:
    # A dataset row has all columns, so a part without an image can still have an image key that is None or empty.
    return value is not None and not (isinstance(value, str | bytes | Mapping | list | tuple) and not value)


def _make_canonical(image: ImagePart, url: str, undo_list: UndoList) -> None:
    part, image_value = image.part, _get_field(image.part, "image_url") if image.key == "image_url" else None
    if isinstance(image_value, MutableMapping) or hasattr(image_value, "url"):
        _set_field(image_value, "url", url, undo_list)
    else:
        _set_field(
            part,
            "image_url",
            {**image_value, "url": url} if isinstance(image_value, Mapping) else {"url": url},
            undo_list,
        )
    _set_field(part, "type", "image_url", undo_list)
    if image.key == "image":
        _remove_field(part, "image", undo_list)


def _get_field(container: Any, name: str) -> Any:
    if isinstance(container, Mapping):
        return container.get(name)
    return getattr(container, name, None)


def _extract_url(value: Any) -> Any:
    return value.get("url") if isinstance(value, Mapping) else getattr(value, "url", value)


def _set_field(container: Any, name: str, value: Any, undo_list: UndoList) -> None:
    if isinstance(container, MutableMapping):
        if name not in container or container[name] != value:
            undo_list.append(_make_restore(container))
            container[name] = value
    elif not hasattr(container, name):
        setattr(container, name, value)
        undo_list.append(lambda: delattr(container, name))
    elif (old_value := getattr(container, name)) != value:
        setattr(container, name, value)
        undo_list.append(lambda: setattr(container, name, old_value))


def _remove_field(container: Any, name: str, undo_list: UndoList) -> None:
    if isinstance(container, MutableMapping):
        undo_list.append(_make_restore(container))
        container.pop(name, None)
    else:
        _set_field(container, name, None, undo_list)


def _make_restore(container: MutableMapping[str, Any]) -> Callable[[], None]:
    original = dict(container)

    def restore() -> None:
        container.clear()
        container.update(original)

    return restore
