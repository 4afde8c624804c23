"""Reads the tools of chat completions, and writes the calls of custom tools as the client knows them.

A function is taken as it is. A custom tool, whose input is one text, becomes a function with one text argument. All
other tools would run at the provider; they are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import require

_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")
_NO_PARAMETERS = {"type": "object", "properties": {}}
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": ["input"],
}


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
        function = _read_function(tool, kind, f"{at}.{kind}")
        name = function["name"]
        if name in schemas:
            raise RequestRefused(
                f"{at}.{kind}.name: there are two tools with the name {name!r}. Rename one of them.",
                parameter=f"{at}.{kind}.name",
            )
        schemas[name] = {"type": "function", "function": function}
        if kind == "custom":
            custom.add(name)
    return ToolSet(list(schemas.values()) or None, frozenset(custom), tuple(ignored))


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


def _read_kind(tool: Any, place: str) -> str:
    """Return the type of a tool; some clients leave it out of functions."""
    kind = require(tool, dict, place, "an object").get("type")
    if kind is None and "function" in tool:
        return "function"
    text: str = require(kind, str, f"{place}.type", "a string")
    return text


def _read_function(tool: Mapping[str, Any], kind: str, place: str) -> dict[str, Any]:
    """Return the function of a tool, without the keys that say nothing to the policy."""
    described = require(tool.get(kind), dict, place, "an object")
    name = require(described.get("name"), str, f"{place}.name", "a string")
    if _NAME.fullmatch(name) is None:
        raise RequestRefused(
            f"{place}.name must have 1 to 128 characters, only letters of ASCII, digits, and '_', '.', ':' and '-'.",
            parameter=f"{place}.name",
        )
    function: dict[str, Any] = {"name": name}
    description = require(described.get("description") or "", str, f"{place}.description", "a string")
    if kind == "custom":
        description = _with_grammar(description, described.get("format"))
    if description:
        function["description"] = description
    parameters = _CUSTOM_PARAMETERS if kind == "custom" else described.get("parameters")
    if parameters is None:
        parameters = _NO_PARAMETERS
    function["parameters"] = require(parameters, dict, f"{place}.parameters", "a JSON schema, which is an object")
    return function


def _with_grammar(description: str, form: Any) -> str:
    """Return the description of a custom tool, which also says which form its input must have."""
    grammar = form.get("grammar") if isinstance(form, dict) and form.get("type") == "grammar" else None
    if not isinstance(grammar, dict):
        return description
    text = f"The input must match this grammar ({grammar.get('syntax')}):\n{grammar.get('definition')}"
    return f"{description}\n\n{text}" if description else text
