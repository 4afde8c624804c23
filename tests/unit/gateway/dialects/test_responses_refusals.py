"""What a request of the dialect Responses may not ask for, and how the client hears of it."""

import random
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import RefusalReason, RequestRefused
from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.dialects.responses_requests import ADD, CALLS, PIXEL, QUESTION, answer, body, events

CALL = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "3.5"}
IMAGE = {"type": "input_image", "image_url": PIXEL}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def refuse(request: bytes) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        ResponsesDialect().read(request)
    return refused.value


@pytest.mark.parametrize(
    ("item", "place"),
    [
        (None, "input[1]"),
        ("text", "input[1]"),
        ({}, "input[1].role"),
        ({"type": 5}, "input[1].type"),
        ({"type": "item_reference"}, "input[1].id"),
        ({"type": "item_reference", "id": "msg_x"}, "input[1].id"),
        ({"type": "compaction", "encrypted_content": "x"}, "input[1].type"),
        ({"type": "additional_tools", "role": "developer", "tools": []}, "input[1].type"),
        ({"type": "configuration_update", "text": {"format": {"type": "json_schema"}}}, "input[1].text"),
        ({"type": "agent_message", "author": "a", "content": []}, "input[1].recipient"),
        (
            {"type": "agent_message", "author": "a", "recipient": "b", "content": [{"type": "encrypted_content"}]},
            "input[1].content[0]",
        ),
        ({"role": "critic", "content": "x"}, "input[1].role"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "user", "content": 5}, "input[1].content"),
        (user("x"), "input[1].content[0]"),
        (user({"text": "x"}), "input[1].content[0]"),
        (user({"type": ["input_text"]}), "input[1].content[0]"),
        (user({"type": "input_text"}), "input[1].content[0].text"),
        (user(IMAGE, {"type": "input_file", "file_id": "f"}), "input[1].content[1]"),
        (user({"type": "input_audio"}), "input[1].content[0]"),
        (user({"type": "input_image"}), "input[1].content[0].image_url"),
        (user({"type": "input_image", "file_id": "f"}), "input[1].content[0].file_id"),
        (user({"type": "input_image", "image_url": "file:///etc/passwd"}), "input[1].content[0].image_url"),
        (user({"type": "input_image", "image_url": "https://a.b/c.png"}), "input[1].content[0].image_url"),
        ({"role": "developer", "content": [IMAGE]}, "input[1].content[0]"),
        ({"role": "assistant", "content": [IMAGE]}, "input[1].content[0]"),
        ({**CALL, "call_id": None}, "input[1].call_id"),
        ({**CALL, "name": 5}, "input[1].name"),
        ({**CALL, "arguments": {}}, "input[1].arguments"),
        ({**CALL, "namespace": 5}, "input[1].namespace"),
        ({**CALL, "type": "custom_tool_call"}, "input[1].input"),
        ({**RESULT, "call_id": 5}, "input[1].call_id"),
        ({**RESULT, "output": None}, "input[1].output"),
        ({**RESULT, "output": [{"type": "input_file"}]}, "input[1].output[0]"),
        ({**RESULT, "output": [{"type": "input_image", "image_url": "http://a"}]}, "input[1].output[0].image_url"),
        ({"type": "reasoning", "summary": [5]}, "input[1].summary[0]"),
        ({"type": "reasoning", "summary": [], "content": [{}]}, "input[1].content[0].text"),
    ],
)
def test_a_wrong_item_is_refused_with_its_place(item: Any, place: str) -> None:
    refusal = refuse(body([QUESTION, item]))
    assert refusal.parameter == place
    assert place.split(".")[0] in str(refusal)


@pytest.mark.parametrize(
    ("tool", "place"),
    [
        (5, "tools[1]"),
        ({}, "tools[1].type"),
        ({"type": "function"}, "tools[1].name"),
        ({"type": "function", "name": "two words"}, "tools[1].name"),
        ({"type": "function", "name": "x" * 129}, "tools[1].name"),
        ({"type": "function", "name": "add"}, "tools[1].name"),
        ({"type": "function", "name": "f", "parameters": "{}"}, "tools[1].parameters"),
        ({"type": "function", "name": "f", "description": 5}, "tools[1].description"),
        ({"type": "custom", "name": ""}, "tools[1].name"),
        ({"type": "namespace", "tools": []}, "tools[1].name"),
        ({"type": "namespace", "name": "n"}, "tools[1].tools"),
        ({"type": "namespace", "name": "n", "tools": [{"type": "function"}]}, "tools[1].tools[0].name"),
        (
            {"type": "namespace", "name": "n" * 70, "tools": [{"type": "function", "name": "m" * 70}]},
            "tools[1].tools[0].name",
        ),
    ],
)
def test_a_wrong_tool_is_refused_with_its_place(tool: Any, place: str) -> None:
    assert refuse(body(tools=[ADD, tool])).parameter == place


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"include": "x"}, "include"),
        ({"include": [5]}, "include[0]"),
        ({"tools": {}}, "tools"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": "a"}}, "logit_bias.1"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ],
)
def test_a_wrong_key_is_refused_by_name(fields: dict[str, Any], parameter: str) -> None:
    request = {"model": "tiny", "input": "Hello", **fields}
    refusal = refuse(orjson.dumps(request))
    assert refusal.parameter == parameter
    assert parameter in str(refusal)


@pytest.mark.parametrize("request_body", [b"", b"[]", b"{", b'{"input": "\\ud800"}', b'{"input": ["\xff"]}'])
def test_a_body_that_is_no_json_object_is_refused(request_body: bytes) -> None:
    refuse(request_body)


def test_an_item_that_is_nested_too_deeply_is_refused() -> None:
    deep = b"[" * 900 + b"]" * 900
    item = b'{"type":"shell_call","call_id":"c","action":' + deep + b"}"
    assert refuse(b'{"input":[' + item + b"]}").parameter == "input[0]"


def test_a_reference_to_an_item_of_another_attempt_is_refused() -> None:
    other = ResponsesDialect()
    item = orjson.loads(other.write_answer(other.read(body()), answer("3.5")))["output"][0]
    refusal = refuse(body([QUESTION, {"type": "item_reference", "id": item["id"]}]))
    assert item["id"] in str(refusal)


def test_damaged_bodies_are_read_or_refused() -> None:
    chance = random.Random(7)
    dialect = ResponsesDialect()
    items = orjson.loads(dialect.write_answer(dialect.read(body()), answer("a", CALLS, reasoning="b")))["output"]
    whole = body([QUESTION, *items, RESULT, user(IMAGE)], tools=[ADD], temperature=1, stream=True)
    refused = 0
    for _ in range(2_000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(data))
            data[start : start + chance.choice((0, 1, 4))] = chance.choice((b"5", b"null", b'"', b"{}", b"[", b"\xff"))
        try:
            dialect.read(bytes(data))
        except RequestRefused:
            refused += 1
    assert refused > 1_000


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        (RefusalReason.INVALID, "invalid_request_error", None),
        (RefusalReason.TOO_LARGE, "invalid_request_error", "request_too_large"),
        (RefusalReason.UNKNOWN_KEY, "authentication_error", "invalid_api_key"),
        (RefusalReason.ENDED, "invalid_request_error", "rollout_ended"),
        (RefusalReason.NOT_FOUND, "not_found_error", "not_found"),
        (RefusalReason.FAILED, "server_error", "server_error"),
    ],
)
def test_a_refusal_has_the_shape_of_the_api(reason: RefusalReason, kind: str, code: str | None) -> None:
    refusal = RequestRefused("It is wrong.", reason=reason, parameter="input[3]")
    assert orjson.loads(ResponsesDialect().write_refusal(refusal)) == {
        "error": {"message": "It is wrong.", "type": kind, "param": "input[3]", "code": code}
    }


def test_a_failure_in_a_stream_is_an_error_and_a_failed_response() -> None:
    dialect = ResponsesDialect()
    request = dialect.read(body(stream=True))
    refusal = RequestRefused("The engine is gone.", reason=RefusalReason.FAILED)
    created, error, failed = events(dialect.write_failure_events(request, refusal))
    assert [event["type"] for event in (created, error, failed)] == ["response.created", "error", "response.failed"]
    assert error["message"] == error["error"]["message"] == "The engine is gone."
    assert failed["response"]["error"] == {"code": "server_error", "message": "The engine is gone."}
    assert created["response"]["id"] == failed["response"]["id"]
