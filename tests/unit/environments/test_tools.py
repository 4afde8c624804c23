"""Tools from functions: their schemas, the conversion of arguments, and functions that cannot be tools."""

import dataclasses
import enum
import functools
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rollout import Tool, tool
from rollout.environments.tools import ArgumentsInvalid, ToolUnusable
from rollout.records.messages import MessageError
from rollout.records.tools import require_tools


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Filter(BaseModel):
    words: list[str]


def parameters_of(made: Tool[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = made.schema["function"]["parameters"]
    return found


def test_a_schema_comes_from_signature_annotations_and_docstring() -> None:
    @tool
    def search(query: str, limit: int = 5, order: Literal["new", "old"] | None = None) -> str:
        """Search the handbook.

        Words are joined by "and".

        Args:
            query: words to look
                for: many or few.
            limit (int, optional): how many passages.

        Returns:
            The passages.
        """
        return f"{query} {limit} {order}"

    require_tools([search.schema], "the test")
    assert search.schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": 'Search the handbook.\n\nWords are joined by "and".',
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "words to look for: many or few."},
                    "limit": {"type": "integer", "default": 5, "description": "how many passages."},
                    "order": {"anyOf": [{"type": "string", "enum": ["new", "old"]}, {"type": "null"}], "default": None},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }


def test_a_tool_can_still_be_called_as_a_function_or_a_method() -> None:
    class Holder:
        factor = 3

        @tool
        async def scale(self, number: int) -> int:
            """Scale a number."""
            return self.factor * number

    @tool(name="twice-2", timeout=5)
    def double(number: int) -> int:
        """Double a number."""
        return 2 * number

    assert (double(4), double(number=5)) == (8, 10)
    assert (double.name, double.timeout, double.__doc__) == ("twice-2", 5.0, "Double a number.")
    call = Holder().scale(number=2)
    with pytest.raises(StopIteration, match="6"):
        call.send(None)
    assert list(parameters_of(Holder.scale)["properties"]) == ["number"]


def test_a_description_in_an_annotation_replaces_that_in_the_docstring() -> None:
    @tool
    def wait(seconds: Annotated[float, Field(ge=0, description="how long")], why: str = Field("", description="why")):  # type: ignore[no-untyped-def]
        """Wait.

        Args:
            seconds: not this.
        """

    assert parameters_of(wait)["properties"] == {
        "seconds": {"type": "number", "minimum": 0, "description": "how long"},
        "why": {"type": "string", "default": "", "description": "why"},
    }


@tool
def draw(
    color: Color,
    at: Point,
    only: Filter | None = None,
    json: str = "{}",
    copy: bool = False,
    size: tuple[int, int] = (1, 1),
) -> None:
    """Draw a point."""


def test_arguments_are_converted_to_their_annotations_and_get_their_defaults() -> None:
    assert draw.parse_arguments({"color": "red", "at": {"x": "3"}, "only": {"words": ["a"]}}) == {
        "color": Color.RED,
        "at": Point(3),
        "only": Filter(words=["a"]),
        "json": "{}",
        "copy": False,
        "size": (1, 1),
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"color": "red"}, "`at`: is missing"),
        ({"color": "blue", "at": {"x": 1}}, "`color`: Input should be 'red', not 'blue'"),
        (
            {"color": "red", "at": {"x": "many"}},
            "`at.x`: Input should be a valid integer, unable to parse .*, not 'many'",
        ),
        ({"color": "red", "at": {"x": 1}, "speed": 2}, "`speed`: is not a parameter of the tool, not 2"),
        ({f"word{n}": n for n in range(9)}, "and 6 more$"),
    ],
)
def test_the_error_of_invalid_arguments_names_them(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        draw.parse_arguments(arguments)
    assert str(refused.value).startswith("the arguments of draw are not valid: `")
    assert re.search(problem, str(refused.value))


def undocumented(query: str) -> None: ...


def only_sections(query: str) -> None:
    """
    Args:
        query: words.
    """


def untyped(query) -> None:  # type: ignore[no-untyped-def]
    """Search."""


def many(*queries: str) -> None:
    """Search."""


def any_name(**queries: str) -> None:
    """Search."""


def by_position(query: str, /) -> None:
    """Search."""


def private_parameter(_query: str) -> None:
    """Search."""


def _private(query: str) -> None:
    """Search."""


def misspelt(query: str) -> None:
    """Search.

    Args:
        qurey: words.
    """


def unresolved(query: "Query") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Search."""


def no_schema(query: str, then: time.struct_time) -> None:
    """Search."""


def generates(query: str):  # type: ignore[no-untyped-def]
    """Search."""
    yield query


class Holder:
    def no_self(query: str) -> None:  # type: ignore[misc]  # noqa: N805
        """Search."""


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (undocumented, "has no description; add a docstring with one, because the model reads it."),
        (only_sections, "has no description; add a docstring"),
        (untyped, "has the parameter `query` without a type; write `query: str`, or another type."),
        (many, "takes `*queries: str`; give each parameter a name, because the model uses the names."),
        (any_name, "takes `**queries: str`; give each parameter a name"),
        (by_position, "takes `query` by position only; remove the `/`"),
        (private_parameter, "has the private parameter `_query`; rename or"),
        (_private, "has the name '_private'; expected a letter, then up to 63 letters, "),
        (misspelt, "describes `qurey` in its docstring, but has no parameter of this name."),
        (unresolved, "has an annotation that cannot be evaluated: name 'Query' is not defined; import or define it"),
        (no_schema, "has the parameter `then`, whose type has no JSON schema; use str, int"),
        (generates, "has a `yield`, which makes it a generator; use `return` instead."),
        (Holder.no_self, "is in a class, but has no `self`; add `self`, or move the function out of the class."),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_error_of_a_function_that_cannot_be_a_tool_has_its_line_and_a_fix(
    function: Callable[..., Any], problem: str
) -> None:
    with pytest.raises(ToolUnusable) as refused:
        tool(function)
    assert re.match(rf"the tool {function.__qualname__} \(.+test_tools\.py, line \d+\) ", str(refused.value))
    assert problem in str(refused.value)


def test_a_partial_is_refused_because_it_has_the_docstring_of_partial() -> None:
    with pytest.raises(ToolUnusable, match=r"is a functools\.partial; write a `def` with its own docstring"):
        tool(functools.partial(no_schema, "query"))


def test_a_tool_instead_of_its_schema_is_refused() -> None:
    @tool
    def search(query: str) -> None:
        """Search."""

    with pytest.raises(MessageError, match=r"tools\[0\] is a Tool made with `@tool` \(give its `.schema` instead\)"):
        require_tools([search], "the test")


@pytest.mark.parametrize("options", [{"name": "no spaces"}, {"name": ""}, {"timeout": 0}, {"timeout": "5"}], ids=repr)
def test_invalid_names_and_timeouts_are_refused(options: dict[str, Any]) -> None:
    (value,) = options.values()
    with pytest.raises(ToolUnusable, match=re.escape(f"the {next(iter(options))} {value!r}; expected")):
        tool(**options)(draw.function)


def test_a_value_that_is_not_a_function_is_refused() -> None:
    with pytest.raises(ToolUnusable, match="@tool got a str; write it above a `def`"):
        tool("search")  # type: ignore[call-overload]
