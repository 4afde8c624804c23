"""The anthropic SDK. Arguments: the model, the task, and `stream` for streamed answers."""

import sys
from typing import Any

import anthropic

from tests.needs.agents.programs import tools

_TOOLS: list[Any] = [
    {"name": name, "description": text, "input_schema": schema} for name, (text, schema) in tools.SCHEMAS.items()
]


def _answer(client: Any, streamed: bool, request: dict[str, Any]) -> Any:
    if not streamed:
        return client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        for _ in stream:
            pass
        return stream.get_final_message()


def _result(call: Any) -> dict[str, Any]:
    text, thing = tools.call(call.name, call.input)
    content: Any = text
    if thing is not None:
        source = {"type": "base64", "media_type": "image/png", "data": tools.picture_base64(thing)}
        content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
    return {"type": "tool_result", "tool_use_id": call.id, "content": content}


def main(model: str, task: str, *options: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    client = anthropic.Anthropic()
    messages: list[Any] = [{"role": "user", "content": task}]
    request = {"model": model, "max_tokens": 1024, "system": tools.INSTRUCTIONS, "tools": _TOOLS, "messages": messages}
    for _ in range(tools.TURNS):
        answer = _answer(client, "stream" in options, request)
        messages.append({"role": "assistant", "content": answer.content})
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            print("".join(block.text for block in answer.content if block.type == "text"))
            return
        messages.append({"role": "user", "content": [_result(call) for call in calls]})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


main(*sys.argv[1:])
