"""Reads the tools of Responses requests, and finds out how a call of one of them is written in an answer.

A function is taken as it is. The functions of a namespace get the name of the namespace in front of their own. A custom
tool, whose input is one text, becomes a function with one text argument. All other tools would run at the provider;
they are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import require

_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")
_SEPARATOR = "__"
_NO_PARAMETERS = {"type": "object", "properties": {}}
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": ["input"],
}


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


def custom_arguments(text: str) -> str:
    """Return the arguments of the function that stands for a custom tool, as JSON text."""
    return orjson.dumps({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool. Arguments without an `input` are given as they are, for the tool to judge."""
    try:
        value = orjson.loads(arguments)
    except ValueError:
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


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
        name = _read_name(tool, place)
        members = require(tool.get("tools"), list, f"{place}.tools", "a list of tools")
        for index, member in enumerate(members):
            _read_tool(member, f"{place}.tools[{index}]", name, schemas, offered, ignored)
        return
    if kind not in ("function", "custom"):
        ignored.append(kind)
        return
    name = _read_name(tool, place)
    function: dict[str, Any] = {"name": full_name(namespace, name)}
    if _NAME.fullmatch(function["name"]) is None:
        raise RequestRefused(
            f"{place}.name is longer than 128 letters with its namespace. Use shorter names.", parameter=f"{place}.name"
        )
    if function["name"] in offered:
        raise RequestRefused(
            f"{place}.name: there are two tools with the name {function['name']!r}. Rename one of them.",
            parameter=f"{place}.name",
        )
    description = _read_description(tool, place)
    if description is not None:
        function["description"] = description
    function["parameters"] = _CUSTOM_PARAMETERS if kind == "custom" else _read_parameters(tool, place)
    schemas.append({"type": "function", "function": function})
    offered[function["name"]] = OfferedTool(name, namespace, kind == "custom")


def _read_name(tool: Mapping[str, Any], place: str) -> str:
    name: str = require(tool.get("name"), str, f"{place}.name", "a string")
    if _NAME.fullmatch(name) is None:
        raise RequestRefused(
            f"{place}.name must have 1 to 128 characters, only letters of ASCII, digits, and '_', '.', ':' and '-'.",
            parameter=f"{place}.name",
        )
    return name


def _read_description(tool: Mapping[str, Any], place: str) -> str | None:
    """Return the description. That of a custom tool also says which format its input must have."""
    description: str | None = tool.get("description")
    if description is not None:
        require(description, str, f"{place}.description", "a string")
    form = tool.get("format") if tool["type"] == "custom" else None
    if isinstance(form, dict) and form.get("type") == "grammar":
        grammar = f"The input must match this grammar ({form.get('syntax')}):\n{form.get('definition')}"
        return f"{description}\n\n{grammar}" if description else grammar
    return description


def _read_parameters(tool: Mapping[str, Any], place: str) -> Any:
    parameters = tool.get("parameters")
    if parameters is None:
        return _NO_PARAMETERS
    return require(parameters, dict, f"{place}.parameters", "a JSON schema, which is an object")
