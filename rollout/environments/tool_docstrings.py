"""Reads what a tool does and what its parameters mean from its docstring (Google style).

Search the handbook.

Args:
    query: words to look for.
    limit: how many passages at most.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass

_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?|Warnings?|Attributes|See Also):\s*"
)
_ARGUMENT_SECTIONS = ("Args", "Arguments", "Parameters")
_PARAMETER = re.compile(r"\s*(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")


@dataclass(frozen=True, slots=True)
class ToolDocumentation:
    """The content of a tool's docstring.

    Attributes:
        description: the text before the first section.
        parameters: the descriptions of the parameters, by name.
    """

    description: str
    parameters: dict[str, str]


def read_docstring(docstring: str) -> ToolDocumentation:
    """Return the description and the parameters in a docstring. Its other sections are for people, and are left out."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in inspect.cleandoc(docstring).splitlines():
        if (header := _SECTION.fullmatch(line)) is not None:
            current = sections.setdefault(header[1], [])
        else:
            current.append(line)
    argument_lines = (line for name in _ARGUMENT_SECTIONS for line in sections.get(name, ()))
    return ToolDocumentation("\n".join(sections[""]).strip(), _read_parameters(argument_lines))


def _read_parameters(lines: Iterable[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    name, indent = "", None
    for line in filter(str.strip, lines):
        line_indent = len(line) - len(line.lstrip())
        indent = line_indent if indent is None else indent
        if line_indent <= indent and (found := _PARAMETER.fullmatch(line)) is not None:
            name = found[1]
            parameters[name] = found[2].strip()
        elif name:
            parameters[name] = f"{parameters[name]} {line.strip()}".strip()
    return parameters
