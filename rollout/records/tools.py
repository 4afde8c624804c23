"""Checks that the tools of a conversation have the form of OpenAI's chat API."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rollout.records.messages import MessageError
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.value_limits import OutOfBoundsError, ValueCounter

_FORM = '{"type": "function", "function": {"name": …, "description": …, "parameters": …}}'


@runtime_checkable
class HasSchema(Protocol):
    """A function that has a tool schema, because `@tool` decorates it.

    Attributes:
        schema: the schema in the form of OpenAI's chat API.
    """

    schema: Mapping[str, Any]


def require_tools(tools: object, source: str) -> None:
    """Check the form of tools. The schemas of their parameters are not checked.

    Args:
        tools: the tools; None if there are none.
        source: the place that the tools come from, for error texts.

    Raises:
        MessageError: `tools` is not a list of tools; the error names the first wrong one.
    """
    if tools is None:
        return
    try:
        ValueCounter().add(tools)
    except OutOfBoundsError as error:
        raise MessageError(f"{source} {error}.") from None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise MessageError(f"{source} is {describe_wrong_type(tools)}; expected a list of tools: [{_FORM}].")
    for index, tool in enumerate(tools):
        if (problem := _tool_problem(tool)) is not None:
            raise MessageError(f"{source}: tools[{index}] {problem}; expected {_FORM}.")


def _tool_problem(tool: Any) -> str | None:
    if not isinstance(tool, Mapping):
        of_a_function = " made with `@tool` (give its `.schema` instead)" if isinstance(tool, HasSchema) else ""
        return f"is {describe_wrong_type(tool)}{of_a_function}"
    if tool.get("type") != "function":
        return f"has the type {show_value(tool['type'])}" if "type" in tool else 'has no "type": "function"'
    if "function" not in tool:
        return 'has no "function"'
    function = tool["function"]
    if not isinstance(function, Mapping):
        return f'has a "function" that is {describe_wrong_type(function)}'
    name, parameters = function.get("name"), function.get("parameters", {})
    if not isinstance(name, str) or not name:
        return f'has a "name" that is {show_value(name)}' if "name" in function else 'has no "name" in its "function"'
    if not isinstance(parameters, Mapping):
        return f'({name}) has "parameters" that are {describe_wrong_type(parameters)}, not a JSON schema'
    return None
