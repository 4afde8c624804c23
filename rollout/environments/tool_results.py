"""Makes the content of a tool message (text, images, or JSON) from the result of a tool."""

from collections.abc import Mapping
from typing import Any

from PIL import Image
from pydantic_core import PydanticSerializationError, to_json

from rollout.environments.base import WrongReturn
from rollout.records.wrong_types import describe_wrong_type
from rollout.texts import escape_surrogates
from rollout.value_limits import MAX_VALUES, OutOfBoundsError, TooMuchTextError, ValueCounter

NOTHING = "Done."
"""The content of the message if a tool returned None."""

Content = str | list[dict[str, Any]]


class ResultTooLarge(Exception):
    """A tool returned more values than a message may contain; the model reads this text."""


def make_content(result: object, tool: str, *, max_chars: int) -> Content:
    """Return the content of the tool message for a result.

    Args:
        result: what the tool returned: text, a Pillow image, a list of texts and images, None, or a value with a JSON
            form.
        tool: the name of the tool, for errors.
        max_chars: the limit for the characters of text that the model gets; a note replaces the rest.

    Raises:
        WrongReturn: the result has another type; the error says what to return.
        ResultTooLarge: the result contains too many values.
    """
    if isinstance(result, Image.Image):
        return [{"type": "image", "image": result}]
    if isinstance(result, list | tuple) and any(isinstance(item, Image.Image) for item in result):
        return _make_parts(result, tool, max_chars)
    return _cut(_write_text(result, tool), max_chars)


def _make_parts(items: list[Any] | tuple[Any, ...], tool: str, max_chars: int) -> list[dict[str, Any]]:
    """Return a content part for each item; all texts together have at most `max_chars` characters."""
    parts: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, Image.Image):
            parts.append({"type": "image", "image": item})
            continue
        text = _write_text(item, tool)
        if max_chars > 0:
            parts.append({"type": "text", "text": _cut(text, max_chars)})
        max_chars -= len(text)
    return parts


def _write_text(value: object, tool: str) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise WrongReturn(f"{tool} returned {describe_wrong_type(value)}; {_BYTES}.")
    try:
        ValueCounter().add(value)
    except TooMuchTextError:
        pass  # a long text is cut later
    except OutOfBoundsError:
        raise ResultTooLarge(f"the result contains more than {MAX_VALUES:,} values, or is nested too deep") from None
    try:
        return to_json(value, inf_nan_mode="constants", fallback=_write_other_type).decode()
    except (PydanticSerializationError, TypeError, ValueError):
        found = next((part for part in _parts_of(value) if _conversion_of(part)), value)
        contents = "" if found is value else f" that contains {describe_wrong_type(found)}"
        conversion = _conversion_of(found) or (
            "return text, a Pillow image, a list of texts and images, or values with a JSON form: numbers, lists, "
            "dicts, dataclasses, pydantic models"
        )
        raise WrongReturn(f"{tool} returned {describe_wrong_type(value)}{contents}; {conversion}.") from None


_BYTES = "decode them to text, or, if they are an image, write Image.open(io.BytesIO(data)), with Image from PIL"


def _write_other_type(value: Any) -> Any:
    """Return a numpy or torch number as a Python number; pydantic calls this for types that it does not know."""
    if not getattr(value, "shape", None) and hasattr(value, "item"):
        return value.item()
    raise TypeError


def _parts_of(value: object) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _conversion_of(value: object) -> str | None:
    """Return what to write to convert a value into a type that is accepted; None if this is not known."""
    if isinstance(value, Image.Image):
        return "return an image alone, or a list of images and texts"
    if isinstance(value, bytes | bytearray | memoryview):
        return _BYTES
    package = type(value).__module__.partition(".")[0]
    if package == "torch":
        return "if it is an image, write torchvision.transforms.functional.to_pil_image(tensor), or else .tolist()"
    if package == "numpy" or hasattr(value, "__array__"):
        return (
            "if it is an image, write Image.fromarray(array), with Image from PIL and values of the type uint8, or "
            "else array.tolist()"
        )
    return None


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n… (cut off: the first {max_chars:,} of {len(text):,} characters)"
