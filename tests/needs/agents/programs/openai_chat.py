"""The openai SDK over chat completions, as in most scripts: the message goes back as the SDK's own object.

The picture of a tool goes into a user message behind the tool messages. Arguments: the model and the task.
"""

import sys
from typing import Any

import openai

from tests.needs.agents.programs import tools


def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    client = openai.OpenAI()
    messages: list[Any] = [{"role": "system", "content": tools.INSTRUCTIONS}, {"role": "user", "content": task}]
    for _ in range(tools.TURNS):
        answer = client.chat.completions.create(model=model, messages=messages, tools=tools.CHAT_TOOLS)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            print(message.content)
            return
        pictures: list[Any] = []
        for call in message.tool_calls:
            assert call.type == "function"
            text, thing = tools.call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
            if thing is not None:
                pictures.append({"type": "image_url", "image_url": {"url": tools.picture_uri(thing)}})
        if pictures:
            messages.append({"role": "user", "content": pictures})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


main(*sys.argv[1:])
