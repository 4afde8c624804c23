"""The openai SDK over chat completions, streamed: the program puts each message together from its chunks.

It keeps the reasoning, as agents for open models do. Arguments: the model and the task.
"""

import sys
from typing import Any

import openai

from tests.needs.agents.programs import tools


def _streamed_message(client: openai.OpenAI, model: str, messages: list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    stream = client.chat.completions.create(
        model=model, messages=messages, tools=tools.CHAT_TOOLS, stream=True, stream_options={"include_usage": True}
    )
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            message["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"type": "function", "function": {"name": "", "arguments": ""}})
                call.update({"id": part.id} if part.id else {})
                if part.function is not None:
                    call["function"]["name"] += part.function.name or ""
                    call["function"]["arguments"] += part.function.arguments or ""
    assert usage is not None, "the stream had no chunk with the usage, though the request asked for it"
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    client = openai.OpenAI()
    messages: list[Any] = [{"role": "system", "content": tools.INSTRUCTIONS}, {"role": "user", "content": task}]
    for _ in range(tools.TURNS):
        message = _streamed_message(client, model, messages)
        messages.append(message)
        if "tool_calls" not in message:
            print(message["content"])
            return
        for call in message["tool_calls"]:
            text, thing = tools.call(**call["function"])
            parts: list[Any] = [{"type": "text", "text": text}]
            if thing is not None:
                parts.append({"type": "image_url", "image_url": {"url": tools.picture_uri(thing), "detail": "auto"}})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": parts if thing else text})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


main(*sys.argv[1:])
