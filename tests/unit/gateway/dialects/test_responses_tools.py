"""How the tools of Responses reach the policy, and how its calls come back."""

from typing import Any

import pytest

from rollout.gateway.dialects.base import AnsweredCall
from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.dialects.responses_requests import ADD, answer, body, output


def read(*tools: dict[str, Any]) -> list[Any]:
    return [tool["function"] for tool in ResponsesDialect().read(body(tools=list(tools))).tools or ()]


def call(name: str, arguments: str, *tools: dict[str, Any]) -> dict[str, Any]:
    (item,) = output(ResponsesDialect(), answer(calls=(AnsweredCall("call_a", name, arguments),)), tools=list(tools))
    return item


def namespace(name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": "Tools.", "tools": list(tools)}


PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files."}


def test_a_function_keeps_its_name_description_and_parameters() -> None:
    assert read(ADD) == [{"name": "add", "description": ADD["description"], "parameters": ADD["parameters"]}]


def test_a_function_without_parameters_takes_none() -> None:
    assert read({"type": "function", "name": "now", "parameters": None}) == [
        {"name": "now", "parameters": {"type": "object", "properties": {}}}
    ]


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}])
def test_a_request_without_tools_has_none(fields: dict[str, Any]) -> None:
    assert ResponsesDialect().read(body(**fields)).tools is None


@pytest.mark.parametrize(
    ("space", "name", "full"),
    [("agents", "wait", "agents__wait"), ("mcp__files__", "read", "mcp__files__read"), ("git", "git_log", "git_log")],
)
def test_a_namespace_is_flattened_and_mapped_back(space: str, name: str, full: str) -> None:
    tool = namespace(space, {"type": "function", "name": name})
    assert [function["name"] for function in read(tool)] == [full]
    item = call(full, "{}", tool)
    assert (item["type"], item["name"], item["namespace"]) == ("function_call", name, space)


def test_two_namespaces_can_have_tools_of_the_same_name() -> None:
    tools = [namespace(space, {"type": "function", "name": "wait"}) for space in ("a", "b")]
    assert [function["name"] for function in read(*tools)] == ["a__wait", "b__wait"]
    assert call("b__wait", "{}", *tools)["namespace"] == "b"


def test_a_custom_tool_takes_one_text() -> None:
    (function,) = read(PATCH)
    assert (function["name"], function["description"]) == ("apply_patch", "Edit files.")
    assert function["parameters"]["required"] == ["input"]


def test_the_grammar_of_a_custom_tool_is_in_its_description() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    (function,) = read({**PATCH, "format": form})
    assert function["description"].startswith("Edit files.")
    assert 'start: "x"' in function["description"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [('{"input": "caf\\u00e9\\n"}', "café\n"), ('{"patch": 1}', '{"patch": 1}'), ("{", "{"), ("[]", "[]")],
)
def test_a_call_of_a_custom_tool_has_an_input(arguments: str, given: str) -> None:
    item = call("apply_patch", arguments, PATCH)
    assert (item["type"], item["input"], item["name"]) == ("custom_tool_call", given, "apply_patch")


def test_a_custom_tool_can_have_a_namespace() -> None:
    item = call("files__apply_patch", '{"input": "x"}', namespace("files", PATCH))
    assert (item["type"], item["input"], item["namespace"]) == ("custom_tool_call", "x", "files")


def test_a_call_of_an_unknown_tool_is_given_as_it_is() -> None:
    item = call("rm", "{", ADD)
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "rm", "{")


def test_other_tools_are_left_out_and_listed() -> None:
    tools = [{"type": "web_search"}, ADD, {"type": "local_shell"}, namespace("n", {"type": "web_search"})]
    request = ResponsesDialect().read(body(tools=tools))
    assert [tool["function"]["name"] for tool in request.tools or ()] == ["add"]
    assert request.ignored_tools == ("web_search", "local_shell", "web_search")
