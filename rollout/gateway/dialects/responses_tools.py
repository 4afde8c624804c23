"""Reads the tools of Responses requests, and finds out how a call of one of them is written in an answer.

A function is taken as it is. The functions of a namespace get the name of the namespace in front of their own. A custom
tool, whose input is one text, becomes a function with one text argument. All other tools would run at the provider;
they are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.tool_schemas import (
    custom_tool,
    function_tool,
    is_tool_name,
    read_description,
    read_tool_name,
)

_SEPARATOR = "__"


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool as the client knows it.

    Attributes:
        name: the name without its namespace.
        namespace: the namespace; None without one.
        is_custom: whether it is a custom tool, whose calls have an input instead of arguments.
    """

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools of a request.

    Attributes:
        schemas: the tools as `Session.chat` takes them; None without tools.
        offered: the tools as the client knows them, by the name that the policy sees.
        ignored: the types of the tools that were left out.
    """

    schemas: list[dict[str, Any]] | None
    offered: Mapping[str, OfferedTool]
    ignored: tuple[str, ...]


NO_TOOLS = ToolSet(None, {}, ())


def read_tools(value: Any, place: str) -> ToolSet:
    """Read the tools of a request. Raises RequestRefused."""
    schemas: list[dict[str, Any]] = []
    offered: dict[str, OfferedTool] = {}
    ignored: list[str] = []
    if value is None:
        return NO_TOOLS
    for index, tool in enumerate(require(value, list, place, "a list of tools")):
        _read_tool(tool, f"{place}[{index}]", None, schemas, offered, ignored)
    return ToolSet(schemas or None, offered, tuple(ignored))


def full_name(namespace: str | None, name: str) -> str:
    """Return the name of a tool for the policy: the name of its namespace comes first, unless it is there already."""
    if not namespace or name.startswith(namespace):
        return name
    return f"{namespace}{name}" if namespace.endswith(_SEPARATOR) else f"{namespace}{_SEPARATOR}{name}"


def _read_tool(
    tool: Any,
    place: str,
    namespace: str | None,
    schemas: list[dict[str, Any]],
    offered: dict[str, OfferedTool],
    ignored: list[str],
) -> None:
    """Add a tool, or each tool of a namespace, to the lists."""
    kind = require(require(tool, dict, place, "an object").get("type"), str, f"{place}.type", "a string")
    if kind == "namespace" and namespace is None:
        name = read_tool_name(tool.get("name"), f"{place}.name")
        members = require(tool.get("tools"), list, f"{place}.tools", "a list of tools")
        for index, member in enumerate(members):
            _read_tool(member, f"{place}.tools[{index}]", name, schemas, offered, ignored)
        return
    if kind not in ("function", "custom"):
        ignored.append(kind)
        return
    name = read_tool_name(tool.get("name"), f"{place}.name")
    full = full_name(namespace, name)
    if not is_tool_name(full):
        raise RequestRefused(
            f"{place}.name is longer than 128 letters with its namespace. Use shorter names.", parameter=f"{place}.name"
        )
    if full in offered:
        raise RequestRefused(
            f"{place}.name: there are two tools with the name {full!r}. Rename one of them.", parameter=f"{place}.name"
        )
    description = read_description(tool.get("description"), f"{place}.description")
    if kind == "function":
        schemas.append(function_tool(full, description, tool.get("parameters"), f"{place}.parameters"))
    else:
        form = tool.get("format")
        is_grammar = isinstance(form, dict) and form.get("type") == "grammar"
        schemas.append(custom_tool(full, description, form if is_grammar else None))
    offered[full] = OfferedTool(name, namespace, kind == "custom")
