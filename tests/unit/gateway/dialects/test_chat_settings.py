"""What the keys of a request of the dialect chat completions mean: sampling, constraints, tools and the form."""

from typing import Any

import pytest

from rollout.config.sampling import SAMPLING_KEYS
from rollout.gateway.dialects.base import Constraint
from tests.unit.gateway.dialects.chat_requests import ADD, PATCH, QUESTION, read

SCHEMA = {"type": "object", "properties": {"sum": {"type": "number"}}}


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, {}),
        ({"temperature": None, "max_tokens": None, "stop": None, "seed": None}, {}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"top_k": 5, "min_p": 0.1, "seed": 7}, {"top_k": 5, "min_p": 0.1, "seed": 7}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2, "frequency_penalty": 2}),
        ({"repetition_penalty": 1.1, "min_tokens": 3}, {"repetition_penalty": 1.1, "min_tokens": 3}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 5}),
        ({"max_tokens": 7, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": []}, {}),
    ],
)
def test_sampling_has_the_names_of_the_engine(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    read_sampling = read(**fields).sampling
    assert read_sampling == sampling
    assert set(read_sampling) <= SAMPLING_KEYS


@pytest.mark.parametrize(
    ("fields", "constraints"),
    [
        ({}, {}),
        ({"response_format": {"type": "text"}, "tool_choice": "auto", "logit_bias": {}}, {}),
        ({"response_format": None, "tool_choice": None, "logit_bias": None, "structured_outputs": None}, {}),
        (
            {"response_format": {"type": "json_object"}},
            {"structured_outputs": Constraint("response_format", {"json_object": True})},
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            {"structured_outputs": Constraint("response_format", {"json": SCHEMA})},
        ),
        ({"logit_bias": {"5": -100, "17": 1.5}}, {"logit_bias": Constraint("logit_bias", {5: -100, 17: 1.5})}),
        (
            {"structured_outputs": {"regex": "a+"}},
            {"structured_outputs": Constraint("structured_outputs", {"regex": "a+"})},
        ),
        ({"guided_choice": ["a", "b"]}, {"structured_outputs": Constraint("guided_choice", {"choice": ["a", "b"]})}),
        ({"guided_json": SCHEMA}, {"structured_outputs": Constraint("guided_json", {"json": SCHEMA})}),
        ({"bad_words": ["x"]}, {"bad_words": Constraint("bad_words", ["x"])}),
        ({"allowed_token_ids": [1, 2]}, {"allowed_token_ids": Constraint("allowed_token_ids", [1, 2])}),
        ({"tool_choice": "required"}, {"tool_choice": Constraint("tool_choice", None)}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
            {"tool_choice": Constraint("tool_choice", None)},
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            {"tool_choice": Constraint("tool_choice", None)},
        ),
    ],
)
def test_constraints_name_the_key_that_asks_for_them(fields: dict[str, Any], constraints: dict[str, Any]) -> None:
    assert read(**fields, tools=[ADD]).constraints == constraints


@pytest.mark.parametrize(("choice", "may_call"), [("auto", True), ("none", False), (None, True), ("required", True)])
def test_tool_choice_says_whether_tools_may_be_called(choice: Any, may_call: bool) -> None:
    request = read(tools=[ADD], tool_choice=choice)
    assert request.may_call_tools is may_call
    assert request.tools is not None


def test_the_number_of_answers_is_n() -> None:
    assert (read(n=3).choices, read(n=None).choices, read().choices) == (3, 1, 1)


@pytest.mark.parametrize(
    ("fields", "streamed", "wants_usage"),
    [
        ({}, False, False),
        ({"stream": None, "stream_options": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_a_stream_is_asked_for(fields: dict[str, Any], streamed: bool, wants_usage: bool) -> None:
    request = read(**fields)
    assert (request.streamed, request.options.wants_usage) == (streamed, wants_usage)


def test_logprobs_are_asked_for_without_their_alternatives() -> None:
    assert read(logprobs=True, top_logprobs=5).wants_logprobs
    assert not read(logprobs=False).wants_logprobs


def test_keys_that_change_no_answer_are_ignored() -> None:
    request = read(
        parallel_tool_calls=False,
        store=True,
        metadata={"a": "b"},
        user="ada",
        service_tier="auto",
        reasoning_effort="high",
        thinking={"type": "enabled"},
        prediction={"type": "content", "content": "x"},
        modalities=["text"],
        chat_template_kwargs={},
        functions=[],
        function_call=None,
        audio=None,
        top_logprobs=0,
        prompt_cache_key="x",
        unheard_of={"x": [1]},
    )
    assert (request.sampling, request.constraints, request.ignored_tools) == ({}, {}, ())


def test_a_function_has_only_what_the_policy_sees() -> None:
    (tool,) = read(tools=[ADD]).tools or ()
    function = {key: value for key, value in ADD["function"].items() if key != "strict"}
    assert tool == {"type": "function", "function": function}
    assert list(tool["function"]) == ["name", "description", "parameters"]


@pytest.mark.parametrize(
    "function",
    [{"name": "f"}, {"name": "f", "parameters": None, "description": None}, {"name": "f", "description": ""}],
)
def test_a_function_without_parameters_takes_none(function: dict[str, Any]) -> None:
    expected = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    assert read(tools=[{"type": "function", "function": function}]).tools == [
        {"type": "function", "function": expected}
    ]
    assert read(tools=[{"function": function}]).tools == [{"type": "function", "function": expected}]


def test_a_custom_tool_becomes_a_function_with_one_text() -> None:
    request = read(tools=[PATCH])
    ((tool,),) = (request.tools or (),)
    assert tool["function"]["description"] == "Edit files."
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert list(tool["function"]["parameters"]["properties"]) == ["input"]
    assert request.options.custom_tools == {"apply_patch"}


@pytest.mark.parametrize("description", ["Edit files.", ""])
def test_the_grammar_of_a_custom_tool_is_told_to_the_policy(description: str) -> None:
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: WORD"}}
    custom = {"name": "apply_patch", "description": description, "format": form}
    (tool,) = read(tools=[{"type": "custom", "custom": custom}]).tools or ()
    told = tool["function"]["description"]
    assert told == f"{description}\n\nThe input must match this grammar (lark):\nstart: WORD".strip()


def test_the_text_format_of_a_custom_tool_says_nothing() -> None:
    custom = {"name": "apply_patch", "description": "Edit files.", "format": {"type": "text"}}
    assert read(tools=[{"type": "custom", "custom": custom}]).tools == read(tools=[PATCH]).tools


def test_tools_of_the_provider_are_left_out_and_listed() -> None:
    request = read(tools=[{"type": "web_search"}, ADD, {"type": "code_interpreter", "container": {}}])
    assert [tool["function"]["name"] for tool in request.tools or ()] == ["add"]
    assert request.ignored_tools == ("web_search", "code_interpreter")


def test_a_search_that_is_asked_for_outside_the_tools_is_listed() -> None:
    assert read(web_search_options={}).ignored_tools == ("web_search",)


@pytest.mark.parametrize("tools", [None, [], [{"type": "web_search"}]])
def test_no_tools_are_none(tools: Any) -> None:
    assert read(QUESTION, tools=tools).tools is None
