"""Bodies of Messages requests, answers, and what a client of the Messages API reads of an answer's events."""

import json
from typing import Any

import orjson

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason

PNG = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
QUESTION = {"role": "user", "content": "What is 1.5 + 2?"}
ODD_ARGUMENTS = '{"b":  2.0,\n "a" : 1.50, "word": "caf\\u00e9"}'


def body_of(*messages: Any, **keys: Any) -> bytes:
    """Return the body of a request with these messages."""
    return json.dumps({"model": "tiny", "max_tokens": 64, "messages": messages, **keys}).encode()


def answer_of(
    text: str = "",
    *calls: AnsweredCall,
    reasoning: str = "",
    finish_reason: FinishReason = FinishReason.STOP,
    limit: RolloutLimit = RolloutLimit.NONE,
) -> Answer:
    """Return an answer of 20 tokens to a prompt of 100, of which 60 were cached."""
    choice = AnswerChoice(text, reasoning, calls, finish_reason, completion_tokens=20)
    return Answer("a1", 1_700_000_000, (choice,), prompt_tokens=100, cached_tokens=60, limit=limit)


def call_of(arguments: str = ODD_ARGUMENTS, call_id: str = "call_1", name: str = "add") -> AnsweredCall:
    """Return a tool call."""
    return AnsweredCall(call_id, name, arguments)


def parsed_events(events: Any) -> list[dict[str, Any]]:
    """Return the objects of events, after a check that each has the name of its type."""
    found = []
    for event in events:
        name, data, *rest = event.decode().split("\n")
        assert rest == ["", ""]
        value = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client puts together from the events of an answer."""
    message: dict[str, Any] = {}
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append(event["content_block"] | {"json": ""})
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                for key in ("text", "thinking", "signature"):
                    block |= {key: block[key] + delta[key]} if key in delta else {}
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop":
                block = message["content"][event["index"]]
                text = block.pop("json")
                block |= {"input": json.loads(text)} if text else {}
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    return message
