"""Reads the tools of chat completions.

A function is taken as it is. A custom tool, whose input is one text, becomes a function with one text argument. All
other tools would run at the provider; they are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.tool_schemas import custom_tool, function_tool, read_description, read_tool_name


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools of a request.

    Attributes:
        schemas: the tools as `Session.chat` takes them; None without tools.
        custom: the names of the custom tools.
        ignored: the types of the tools that were left out.
    """

    schemas: list[dict[str, Any]] | None = None
    custom: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


def read_tools(value: Any, place: str) -> ToolSet:
    """Read the tools of a request. Raises RequestRefused."""
    if value is None:
        return ToolSet()
    schemas: dict[str, dict[str, Any]] = {}
    custom: set[str] = set()
    ignored: list[str] = []
    for index, tool in enumerate(require(value, list, place, "a list of tools")):
        at = f"{place}[{index}]"
        kind = _read_kind(tool, at)
        if kind not in ("function", "custom"):
            ignored.append(kind)
            continue
        schema = _read_schema(tool, kind, f"{at}.{kind}")
        name = schema["function"]["name"]
        if name in schemas:
            raise RequestRefused(
                f"{at}.{kind}.name: there are two tools with the name {name!r}. Rename one of them.",
                parameter=f"{at}.{kind}.name",
            )
        schemas[name] = schema
        if kind == "custom":
            custom.add(name)
    return ToolSet(list(schemas.values()) or None, frozenset(custom), tuple(ignored))


def _read_kind(tool: Any, place: str) -> str:
    """Return the type of a tool; some clients leave it out of functions."""
    kind = require(tool, dict, place, "an object").get("type")
    if kind is None and "function" in tool:
        return "function"
    text: str = require(kind, str, f"{place}.type", "a string")
    return text


def _read_schema(tool: Mapping[str, Any], kind: str, place: str) -> dict[str, Any]:
    """Return the schema of a tool, without the keys that say nothing to the policy."""
    described = require(tool.get(kind), dict, place, "an object")
    name = read_tool_name(described.get("name"), f"{place}.name")
    description = read_description(described.get("description"), f"{place}.description")
    if kind == "function":
        return function_tool(name, description, described.get("parameters"), f"{place}.parameters")
    form = described.get("format")
    is_grammar = isinstance(form, dict) and form.get("type") == "grammar"
    return custom_tool(name, description, form.get("grammar") if is_grammar else None)
