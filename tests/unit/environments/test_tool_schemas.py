"""Inner models in the schema of a tool: written where they are used, unless they contain themselves."""

import enum
from typing import Any

from pydantic import BaseModel

from rollout import Tool, tool


class Order(enum.Enum):
    NEW = "new"
    OLD = "old"


class Filter(BaseModel):
    """What a passage must have."""

    title: str = "title"
    order: Order = Order.NEW


class Tree(BaseModel):
    children: list["Tree"] = []


def parameters_of(made: Tool[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = made.schema["function"]["parameters"]["properties"]
    return found


def test_an_inner_model_is_written_where_it_is_used() -> None:
    @tool
    def search(first: Filter, others: list[Filter]) -> None:
        """Search."""

    expected = {
        "type": "object",
        "description": "What a passage must have.",
        "properties": {
            "title": {"type": "string", "default": "title"},
            "order": {"type": "string", "enum": ["new", "old"], "default": "new"},
        },
    }
    assert parameters_of(search) == {"first": expected, "others": {"type": "array", "items": expected}}


def test_values_that_look_like_schemas_stay_as_they_are() -> None:
    @tool
    def draw(style: dict[str, str] = {"title": "bold"}) -> None:  # noqa: B006 - a default of the schema
        """Draw."""

    assert parameters_of(draw)["style"]["default"] == {"title": "bold"}


def test_a_model_that_contains_itself_keeps_its_reference() -> None:
    @tool
    def plant(tree: Tree) -> None:
        """Plant a tree."""

    parameters = plant.schema["function"]["parameters"]
    assert parameters["properties"]["tree"]["$ref"] == "#/$defs/Tree"
    assert set(parameters["$defs"]) == {"Tree"}
