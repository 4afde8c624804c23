"""Makes the schemas of tools in the form that `Session.chat` takes, for all dialects.

A custom tool of OpenAI's APIs, whose input is one text, becomes a function with one text argument.
"""

import re
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


def is_tool_name(name: str) -> bool:
    """Return whether a tool may have this name."""
    return _NAME.fullmatch(name) is not None


def read_tool_name(value: Any, place: str) -> str:
    """Return the name of a tool. Raises RequestRefused."""
    name: str = require(value, str, place, "a string")
    if not is_tool_name(name):
        raise RequestRefused(
            f"{place} must have 1 to 128 characters, only letters of ASCII, digits, and '_', '.', ':' and '-'.",
            parameter=place,
        )
    return name


def read_description(value: Any, place: str) -> str:
    """Return the description of a tool; empty without one. Raises RequestRefused."""
    return "" if value is None else str(require(value, str, place, "a string"))


def function_tool(name: str, description: str, parameters: Any, place: str) -> dict[str, Any]:
    """Return the schema of a function; without parameters it takes none. Raises RequestRefused.

    Args:
        name: the name for the policy.
        description: the description; left out if it is empty.
        parameters: the JSON schema of the arguments; None without one.
        place: the place of the parameters in the request.
    """
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    if parameters is None:
        parameters = _NO_PARAMETERS
    function["parameters"] = require(parameters, dict, place, "a JSON schema, which is an object")
    return {"type": "function", "function": function}


def custom_tool(name: str, description: str, grammar: Any) -> dict[str, Any]:
    """Return the schema of the function that stands for a custom tool.

    Args:
        name: the name for the policy.
        description: the description; may be empty.
        grammar: the object with `syntax` and `definition` that the input must match; anything else says nothing.
    """
    if isinstance(grammar, dict):
        text = f"The input must match this grammar ({grammar.get('syntax')}):\n{grammar.get('definition')}"
        description = f"{description}\n\n{text}" if description else text
    return function_tool(name, description, _CUSTOM_PARAMETERS, "parameters")


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
