"""Chooses which tools of a program the scripted policy calls: those that change nothing, as far as their names say."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND_KEYS = frozenset({"command", "cmd", "commands", "script", "shell_command", "bash"})
"""The names of arguments that hold a shell command. Such a tool gets `echo`."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_READING = re.compile(
    "read|list|ls|view|show|get|look|lookup|find|search|glob|grep|cat|head|stat|status|add|sum|count|echo"
)
_CHANGING = re.compile(
    "delete|remove|rm|unlink|write|edit|create|update|patch|apply|replace|insert|save|move|rename|kill|stop|submit|"
    "finish|final|done|complete|exit|end|web|fetch|http|url|browser|browse|internet|download|upload|send|post|mail|"
    "install|deploy|commit|push|task|agent|spawn|delegate|subagent|ask|question|input|user|plan|todo|stdin|click|"
    "think|remember|memory|sleep|wait"
)
_ENDING = re.compile("submit|finish|final|done|complete|completion|exit|end")


def schema_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of the arguments of a tool; an empty one if it has none."""
    schema = tool["function"].get("parameters")
    return schema if isinstance(schema, Mapping) else {}


def command_key(tool: Mapping[str, Any]) -> str | None:
    """Return the argument of a tool that holds a shell command; None if it has none."""
    properties = schema_of(tool).get("properties")
    return next((key for key in properties or () if str(key).lower() in COMMAND_KEYS), None)


def choose_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the two most harmless tools; twice the same one if no other is as harmless. There must be a tool."""
    ordered = sorted(tools, key=_danger)
    second = ordered[1] if len(ordered) > 1 and _danger(ordered[1]) <= max(1, _danger(ordered[0])) else ordered[0]
    return ordered[0], second


def ending_tool(tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return a tool whose name says that it ends the task; None if there is none."""
    return next((tool for tool in tools if _has_word(tool, _ENDING)), None)


def _danger(tool: Mapping[str, Any]) -> int:
    """Return 0 for a shell or a tool that reads, 1 for an unknown one, and 2 for one that may change something."""
    if _has_word(tool, _CHANGING):
        return 2
    return 0 if command_key(tool) is not None or _has_word(tool, _READING) else 1


def _has_word(tool: Mapping[str, Any], words: re.Pattern[str]) -> bool:
    """Whether a word of the tool's name is one of these."""
    return any(words.fullmatch(word.lower()) for word in _WORD.findall(str(tool["function"]["name"])))
