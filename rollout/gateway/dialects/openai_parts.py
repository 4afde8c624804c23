"""Reads the content of messages in OpenAI's APIs: texts, and images as `data:` URLs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import read_image_url, require

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")


def read_parts(content: Any, place: str) -> list[dict[str, Any]]:
    """Return the content of a message as parts. Raises RequestRefused."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = require(content, list, place, "a string or a list of parts")
    return [read_part(part, f"{place}[{index}]") for index, part in enumerate(parts)]


def read_part(part: Any, place: str) -> dict[str, Any]:
    """Return one part of a message. Raises RequestRefused."""
    kind = require(part, dict, place, "an object").get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": require(part.get("text"), str, f"{place}.text", "a string")}
    if kind == "refusal":
        return {"type": "text", "text": require(part.get("refusal"), str, f"{place}.refusal", "a string")}
    if kind in _IMAGE_PARTS:
        return _read_image(part, place)
    shown = repr(kind[:64]) if isinstance(kind, str) else "no type"
    raise RequestRefused(
        f"{place} is a part of the type {shown}; the gateway takes text and images alone.", parameter=place
    )


def part_texts(parts: Sequence[Mapping[str, Any]], place: str, first: int = 0) -> list[str]:
    """Return the texts of parts that must be text. `first` is the index of the first one in the message."""
    for index, part in enumerate(parts, first):
        if part["type"] != "text":
            raise RequestRefused(
                f"{place}[{index}] is an image; only messages of the user and results of tools may have images.",
                parameter=f"{place}[{index}]",
            )
    return [part["text"] for part in parts]


def _read_image(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return an image, whose URL may be in an object."""
    image = part.get("image_url")
    if image is None:
        raise RequestRefused(
            f"{place} has no image_url. The gateway has no files: send the bytes of the image as "
            "data:image/png;base64,… in image_url, not a file_id.",
            parameter=f"{place}.file_id" if part.get("file_id") is not None else f"{place}.image_url",
        )
    if isinstance(image, dict):
        return read_image_url(image.get("url"), f"{place}.image_url.url")
    return read_image_url(image, f"{place}.image_url")
