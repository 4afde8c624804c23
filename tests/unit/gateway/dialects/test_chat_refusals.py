"""What a request of the dialect chat completions may not ask for, and how the client hears of it."""

import json
import random
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import RefusalReason, RequestRefused
from rollout.gateway.dialects.chat import ChatDialect
from tests.unit.gateway.dialects.chat_requests import ADD, CALL, IMAGE, PATCH, QUESTION, answer, body, choice, chunks

RESULT = {"role": "tool", "tool_call_id": "call_a", "content": "3.5"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def calling(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [CALL, {**CALL, **changes}]}


def refuse(request: bytes) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        ChatDialect().read(request)
    return refused.value


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (None, "messages[1]"),
        ("text", "messages[1]"),
        ([], "messages[1]"),
        ({}, "messages[1].role"),
        ({"role": 5, "content": "x"}, "messages[1].role"),
        ({"role": ["user"], "content": "x"}, "messages[1].role"),
        ({"role": "critic", "content": "x"}, "messages[1].role"),
        ({"role": "function", "name": "add", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "messages[1].content"),
        ({"role": "user", "content": "x", "name": 5}, "messages[1].name"),
        ({"role": "system"}, "messages[1].content"),
        ({"role": "developer", "content": [IMAGE]}, "messages[1].content[0]"),
        (user("x"), "messages[1].content[0]"),
        (user({"text": "x"}), "messages[1].content[0]"),
        (user({"type": ["text"]}), "messages[1].content[0]"),
        (user({"type": "text"}), "messages[1].content[0].text"),
        (user({"type": "text", "text": None}), "messages[1].content[0].text"),
        (user(IMAGE, {"type": "file", "file": {"file_id": "f"}}), "messages[1].content[1]"),
        (user({"type": "input_audio", "input_audio": {}}), "messages[1].content[0]"),
        (user({"type": "video_url", "video_url": {"url": "data:,"}}), "messages[1].content[0]"),
        (user({"type": "image_url"}), "messages[1].content[0].image_url"),
        (user({"type": "image_url", "image_url": {}}), "messages[1].content[0].image_url.url"),
        (user({"type": "image_url", "image_url": 5}), "messages[1].content[0].image_url"),
        (
            user({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}),
            "messages[1].content[0].image_url.url",
        ),
        (user({"type": "image_url", "image_url": {"url": "file:///etc/x"}}), "messages[1].content[0].image_url.url"),
        (user({"type": "input_image", "image_url": "FILE:///etc/x"}), "messages[1].content[0].image_url"),
        (user({"type": "input_image", "file_id": "f"}), "messages[1].content[0].file_id"),
        ({"role": "assistant", "content": 5}, "messages[1].content"),
        ({"role": "assistant", "content": [IMAGE]}, "messages[1].content[0]"),
        ({"role": "assistant", "content": [{"type": "text", "text": "x"}, IMAGE]}, "messages[1].content[1]"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "messages[1].content[0].refusal"),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": 5}]}, "messages[1].content[0].thinking"),
        ({"role": "assistant", "content": "x", "refusal": 5}, "messages[1].refusal"),
        ({"role": "assistant", "content": "x", "reasoning_content": 5}, "messages[1].reasoning_content"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, "messages[1].audio"),
        ({"role": "assistant", "tool_calls": {"id": "c"}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0]"),
        (calling(id=None), "messages[1].tool_calls[1].id"),
        (calling(type="mcp"), "messages[1].tool_calls[1].type"),
        (calling(type=["function"]), "messages[1].tool_calls[1].type"),
        (calling(function=None), "messages[1].tool_calls[1].function"),
        (calling(function={"arguments": "{}"}), "messages[1].tool_calls[1].function.name"),
        (calling(function={"name": "f", "arguments": 5}), "messages[1].tool_calls[1].function.arguments"),
        (calling(type="custom"), "messages[1].tool_calls[1].custom"),
        (calling(type="custom", custom={"name": "f"}), "messages[1].tool_calls[1].custom.input"),
        ({**RESULT, "tool_call_id": None}, "messages[1].tool_call_id"),
        ({**RESULT, "content": 5}, "messages[1].content"),
        ({**RESULT, "content": [{"type": "file"}]}, "messages[1].content[0]"),
        (
            {**RESULT, "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]},
            "messages[1].content[0].image_url.url",
        ),
    ],
)
def test_a_wrong_message_is_refused_with_its_place(message: Any, place: str) -> None:
    refusal = refuse(body(QUESTION, message, QUESTION))
    assert (refusal.reason, refusal.parameter) == (RefusalReason.INVALID, place)
    assert "messages[1]" in str(refusal)


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    call = b'{"id":"c","function":{"name":"f","arguments":' + deep + b"}}"
    request = b'{"messages":[{"role":"assistant","tool_calls":[' + call + b"]}]}"
    assert refuse(request).parameter == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("tool", "place"),
    [
        (5, "tools[1]"),
        ({}, "tools[1].type"),
        ({"type": 5}, "tools[1].type"),
        ({"type": "function"}, "tools[1].function"),
        ({"type": "function", "name": "f"}, "tools[1].function"),
        ({"type": "function", "function": {}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "two words"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "naïve"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": ""}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "x" * 129}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "add"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "f\n"}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "f", "parameters": "{}"}}, "tools[1].function.parameters"),
        ({"type": "function", "function": {"name": "f", "description": 5}}, "tools[1].function.description"),
        ({"type": "custom", "custom": {"name": 5}}, "tools[1].custom.name"),
        ({**PATCH, "custom": {"name": "add"}}, "tools[1].custom.name"),
    ],
)
def test_a_wrong_tool_is_refused_with_its_place(tool: Any, place: str) -> None:
    assert refuse(body(tools=[ADD, tool])).parameter == place


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": QUESTION}, "messages"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "The sum is"}]}, "messages[1]"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": "audio"}, "modalities"),
        ({"prompt": "Hi"}, "prompt"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"echo": True}, "echo"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"tools": {}}, "tools"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": "a"}}, "logit_bias.1"),
        ({"bad_words": ["x", 5]}, "bad_words[1]"),
        ({"allowed_token_ids": ["x"]}, "allowed_token_ids[0]"),
        ({"structured_outputs": "x"}, "structured_outputs"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ],
)
def test_a_wrong_key_is_refused_by_its_name(fields: dict[str, Any], parameter: str) -> None:
    request = {"model": "tiny", "messages": [QUESTION], **fields}
    refusal = refuse(json_with_large_numbers(request))
    assert refusal.parameter == parameter
    assert parameter in str(refusal)


def json_with_large_numbers(request: dict[str, Any]) -> bytes:
    """Return JSON also of whole numbers of more than 64 bits."""
    return json.dumps(request).encode()


@pytest.mark.parametrize(
    "request_body",
    [
        b"",
        b"null",
        b"[]",
        b'"messages"',
        b"{",
        b'{"messages":[{"role":"user","content":"x"}]',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":[' + b'{"role":' * 2000 + b"1" + b"}" * 2000 + b"]}",
        b'{"messages":[{"role":"user","content":"x"}],"n":NaN}',
    ],
)
def test_a_body_that_is_no_request_is_refused(request_body: bytes) -> None:
    assert refuse(request_body).reason is RefusalReason.INVALID


def test_hostile_bodies_are_refused_or_read() -> None:
    """Random bytes in a good body, and random values at random places, lead to no other error than a refusal."""
    generator = random.Random(23)
    values: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], [[]], {}, {"type": "text"}, [5], {"role": "user"}, 2**63]
    good = orjson.loads(
        body(user(IMAGE), calling(), RESULT, QUESTION, tools=[ADD, PATCH], stop=["x"], logit_bias={"1": 1}, n=1)
    )
    dialect = ChatDialect()
    refused = 0
    for _ in range(1500):
        request = orjson.loads(orjson.dumps(good))
        at: Any = request
        while True:
            key = generator.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or generator.random() < 0.3:
                break
            at = at[key]
        at[key] = generator.choice(values)
        try:
            dialect.read(orjson.dumps(request))
        except RequestRefused:
            refused += 1
        data = bytearray(orjson.dumps(good))
        data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            dialect.read(bytes(data))
        except RequestRefused:
            refused += 1
    assert refused > 500
    dialect.read(orjson.dumps(good))


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
    refusal = RequestRefused("Wrong.", reason=reason, parameter="messages[1]")
    expected = {"error": {"message": "Wrong.", "type": kind, "param": "messages[1]", "code": code}}
    assert orjson.loads(ChatDialect().write_refusal(refusal)) == expected


def test_a_failure_in_a_stream_is_an_error_and_the_end() -> None:
    dialect = ChatDialect()
    request = dialect.read(body(stream=True))
    failure = RequestRefused("The engine failed.", reason=RefusalReason.FAILED)
    (event,) = chunks(dialect.write_failure_events(request, failure))
    assert event == orjson.loads(dialect.write_refusal(failure))


def test_a_refusal_leaves_the_dialect_usable() -> None:
    dialect = ChatDialect()
    with pytest.raises(RequestRefused):
        dialect.read(body(tools=[{}]))
    request = dialect.read(body())
    assert orjson.loads(dialect.write_answer(request, answer(choice("3.5"))))["object"] == "chat.completion"
