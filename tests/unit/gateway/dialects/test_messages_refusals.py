"""Requests of the Messages dialect that are wrong are refused with the place of what is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.gateway.dialects.base import RefusalReason, RequestRefused
from rollout.gateway.dialects.messages import MessagesDialect
from tests.unit.gateway.dialects.messages_bodies import QUESTION, body_of

DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"a": DEEP}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


def in_result(*blocks: Any) -> dict[str, Any]:
    return user({"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "a", "content": list(blocks)})


def call(**keys: Any) -> dict[str, Any]:
    return assistant({"type": "tool_use", "id": "call_1", "name": "add", "input": {}} | keys)


MESSAGES = {
    "a message that is no object": ("hello", "messages[1]"),
    "an unknown role": ({"role": "tool", "content": "x"}, "messages[1].role"),
    "no role": ({"content": "x"}, "messages[1].role"),
    "no content": ({"role": "user"}, "messages[1].content"),
    "a content that is a number": ({"role": "assistant", "content": 1}, "messages[1].content"),
    "a block that is no object": (user("x"), "messages[1].content[0]"),
    "a block without a type": (user({"text": "x"}), "messages[1].content[0].type"),
    "a text block without text": (user({"type": "text"}), "messages[1].content[0].text"),
    "a document": (user({"type": "text", "text": "x"}, {"type": "document"}), "messages[1].content[1]"),
    "a search result": (user({"type": "search_result"}), "messages[1].content[0]"),
    "a call of a user": (user({"type": "tool_use"}), "messages[1].content[0]"),
    "an image without a source": (user({"type": "image"}), "messages[1].content[0].source"),
    "an image from the network": (user(image(type="url", url="https://x.org/a.png")), "messages[1].content[0]"),
    "an image from the disk": (user(image(type="url", url="file:///etc/passwd")), "messages[1].content[0]"),
    "an image of the provider": (user(image(type="file", file_id="f")), "messages[1].content[0]"),
    "an image without a type": (
        user(image(type="base64", data="AAAA")),
        "messages[1].content[0].source.media_type",
    ),
    "an image with a wrong type": (
        user(image(type="base64", media_type="text/html;x", data="AAAA")),
        "messages[1].content[0].source.media_type",
    ),
    "an image without bytes": (
        user(image(type="base64", media_type="image/png")),
        "messages[1].content[0].source.data",
    ),
    "an image of the assistant": (
        assistant(image(type="base64", media_type="image/png", data="AAAA")),
        "messages[1].content[0]",
    ),
    "a search of the assistant": (assistant({"type": "server_tool_use"}), "messages[1].content[0]"),
    "thinking that is no text": (assistant({"type": "thinking", "thinking": 1}), "messages[1].content[0].thinking"),
    "a call without an id": (call(id=None), "messages[1].content[0].id"),
    "a call without a name": (call(name=None), "messages[1].content[0].name"),
    "an input that is text": (call(input="{}"), "messages[1].content[0].input"),
    "an input that is nested too deep": (call(input=DEEP), "messages[1].content[0].input"),
    "a result without a call": (user({"type": "tool_result"}), "messages[1].content[0].tool_use_id"),
    "a result that is a number": (
        user({"type": "tool_result", "tool_use_id": "a", "content": 1}),
        "messages[1].content[0].content",
    ),
    "a document in a result": (in_result({"type": "document"}), "messages[1].content[1].content[0]"),
    "a linked image in a result": (
        in_result({"type": "text", "text": "x"}, image(type="url", url="http://x.org/a.png")),
        "messages[1].content[1].content[1]",
    ),
    "an image in a system message": (
        {"role": "system", "content": [image(type="base64", media_type="image/png", data="AAAA")]},
        "messages[1].content[0]",
    ),
}

KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "messages that are no list": ({"messages": {}}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "only a system message": ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    "an answer to continue": ({"messages": [QUESTION, {"role": "assistant", "content": "It"}]}, "messages[1]"),
    "a system that is a number": ({"system": 1}, "system"),
    "an image in the system": ({"system": [{"type": "image"}]}, "system[0]"),
    "a model that is a number": ({"model": 1}, "model"),
    "a stream that is text": ({"stream": "yes"}, "stream"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "a part of a token": ({"max_tokens": 1.5}, "max_tokens"),
    "tokens that are true": ({"max_tokens": True}, "max_tokens"),
    "a temperature below 0": ({"temperature": -1}, "temperature"),
    "a temperature that is text": ({"temperature": "1"}, "temperature"),
    "a top_p of 0": ({"top_p": 0}, "top_p"),
    "a top_p above 1": ({"top_p": 1.1}, "top_p"),
    "a top_k below -1": ({"top_k": -2}, "top_k"),
    "stop sequences that are a number": ({"stop_sequences": 1}, "stop_sequences"),
    "an empty stop sequence": ({"stop_sequences": ["END", ""]}, "stop_sequences[1]"),
    "two answers": ({"n": 2}, "n"),
    "a container": ({"container": {"skills": []}}, "container"),
    "a key of another API": ({"response_format": {"type": "json_object"}}, "response_format"),
    "tools that are no list": ({"tools": {}}, "tools"),
    "a tool that is text": ({"tools": ["add"]}, "tools[0]"),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    "a tool with a wrong name": ({"tools": [{"name": "add two"}]}, "tools[0].name"),
    "a tool with a wrong type": ({"tools": [{"name": "add", "type": 1}]}, "tools[0].type"),
    "a description that is a number": ({"tools": [{"name": "add", "description": 1}]}, "tools[0].description"),
    "a schema that is text": ({"tools": [{"name": "add", "input_schema": "{}"}]}, "tools[0].input_schema"),
    "a schema that is nested too deep": ({"tools": [{"name": "add", "input_schema": DEEP}]}, "tools"),
    "MCP servers that are text": ({"mcp_servers": "x"}, "mcp_servers"),
    "a choice of tools that is text": ({"tool_choice": "auto"}, "tool_choice"),
    "an unknown choice of tools": ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
    "an output_config that is text": ({"output_config": "x"}, "output_config"),
    "a form that is text": ({"output_config": {"format": "json"}}, "output_config.format"),
    "an unknown form": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    "a form without a schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema",
    ),
}


def refusal_of(body: bytes) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        MessagesDialect().read(body)
    return caught.value


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_is_refused_with_its_place(name: str) -> None:
    message, place = MESSAGES[name]
    refusal = refusal_of(body_of(QUESTION, message, QUESTION))
    assert (refusal.parameter, refusal.reason, place in str(refusal)) == (place, RefusalReason.INVALID, True)


@pytest.mark.parametrize("name", KEYS)
def test_a_wrong_key_is_refused_with_its_name(name: str) -> None:
    keys, place = KEYS[name]
    refusal = refusal_of(json.dumps({"messages": [QUESTION]} | keys).encode())
    assert (refusal.parameter, refusal.reason, place in str(refusal)) == (place, RefusalReason.INVALID, True)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff", b'{"messages": [{]}'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal_of(body).reason is RefusalReason.INVALID


def test_a_body_without_messages_is_refused() -> None:
    assert refusal_of(b"{}").parameter == "messages"


def test_a_refused_message_is_refused_again_with_its_new_place() -> None:
    dialect = MessagesDialect()
    wrong = user({"type": "document"})
    for before, place in ((1, "messages[1].content[0]"), (2, "messages[2].content[0]")):
        with pytest.raises(RequestRefused) as caught:
            dialect.read(body_of(*[QUESTION] * before, wrong))
        assert caught.value.parameter == place


def test_a_refusal_shows_no_bytes_of_an_image() -> None:
    refusal = refusal_of(body_of(user({"type": "A" * 500})))
    assert len(str(refusal)) < 200


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "text", "image", "user", "assistant", "any"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "source", "input", "id", "name", "tool_use_id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(
    messages=st.lists(_ANY, max_size=3),
    keys=st.dictionaries(
        st.sampled_from(["system", "tools", "tool_choice", "stop_sequences", "output_config", "stream", "max_tokens"]),
        _ANY,
        max_size=3,
    ),
)
def test_any_request_is_read_or_refused(messages: list[Any], keys: dict[str, Any]) -> None:
    try:
        request = MessagesDialect().read(json.dumps({"messages": messages} | keys).encode())
    except RequestRefused:
        return
    assert len(request.messages) == len(request.places)
