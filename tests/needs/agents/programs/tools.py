"""The three tools that every program of this folder offers to its model; one of them returns an image.

The results depend on the arguments alone, so the same conversation has the same results in every client.
"""

import base64
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

INSTRUCTIONS = "Use the tools to do the task. Answer in one line when you are done."
TURNS = 30
"""After so many turns a program gives up."""

_WORDS = {"café": "a place that serves coffee", "square": "a shape with four equal sides"}


def add(a: float, b: float) -> str:
    """Add two numbers."""
    return str(a + b)


def lookup(word: str) -> str:
    """Look up what a word means."""
    return _WORDS.get(word, f"no entry for {word!r}")


def picture(name: str) -> bytes:
    """Return the PNG of a thing: a plain image whose colour depends on the name."""
    colour = zlib.crc32(name.encode()) & 0xFFFFFF
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (colour >> 16, colour >> 8 & 255, colour & 255)).save(file, "PNG")
    return file.getvalue()


def picture_base64(name: str) -> str:
    """Return the PNG of a thing in base64."""
    return base64.b64encode(picture(name)).decode()


def picture_uri(name: str) -> str:
    """Return the PNG of a thing as a data URI."""
    return f"data:image/png;base64,{picture_base64(name)}"


def _schema(**types: str) -> dict[str, Any]:
    properties = {name: {"type": type_} for name, type_ in types.items()}
    return {"type": "object", "properties": properties, "required": list(types), "additionalProperties": False}


SCHEMAS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "add": ("Add two numbers.", _schema(a="number", b="number")),
    "lookup": ("Look up what a word means.", _schema(word="string")),
    "look_at": ("Look at a thing; the result is a picture of it.", _schema(name="string")),
}
"""The description and the JSON schema of each tool, for clients that have no way of their own to describe functions."""

CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": text, "parameters": schema}}
    for name, (text, schema) in SCHEMAS.items()
]
"""The tools in the form of chat completions."""


def call(name: str, arguments: str | Mapping[str, Any]) -> tuple[str, str | None]:
    """Call a tool as a model asks for it.

    Args:
        name: its name.
        arguments: its arguments, or their JSON.

    Returns:
        The text of the result, and the name of the thing that it shows, if any. A wrong call has a text that says so.
    """
    try:
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        if name == "add":
            return add(float(values["a"]), float(values["b"])), None
        if name == "lookup":
            return lookup(str(values["word"])), None
        if name == "look_at":
            thing = str(values["name"])
            return f"This is {thing}:", thing
    except (ValueError, TypeError, KeyError) as error:
        return f"wrong arguments for {name}: {error!r}", None
    return f"there is no tool {name!r}", None
