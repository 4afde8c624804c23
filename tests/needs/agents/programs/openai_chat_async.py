"""The asynchronous openai SDK over chat completions: messages go back as dictionaries, with every null.

The picture of a tool stands in the tool message. Arguments: the model and the task.
"""

import asyncio
import sys
from typing import Any

import openai

from tests.needs.agents.programs import tools


async def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    client = openai.AsyncOpenAI()
    messages: list[Any] = [{"role": "system", "content": tools.INSTRUCTIONS}, {"role": "user", "content": task}]
    for _ in range(tools.TURNS):
        answer = await client.chat.completions.create(model=model, messages=messages, tools=tools.CHAT_TOOLS)
        message = answer.choices[0].message
        messages.append(message.model_dump())
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            assert call.type == "function"
            text, thing = tools.call(call.function.name, call.function.arguments)
            parts: list[Any] = [{"type": "text", "text": text}]
            if thing is not None:
                parts.append({"type": "image_url", "image_url": {"url": tools.picture_uri(thing)}})
            messages.append({"role": "tool", "tool_call_id": call.id, "content": parts})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


asyncio.run(main(*sys.argv[1:]))
