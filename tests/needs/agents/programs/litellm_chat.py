"""litellm over chat completions: the message goes back as its own object. Arguments: the model and the task."""

import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for its price list over the network

import litellm

from tests.needs.agents.programs import tools


def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    messages: list[Any] = [{"role": "system", "content": tools.INSTRUCTIONS}, {"role": "user", "content": task}]
    for _ in range(tools.TURNS):
        answer = litellm.completion(model=f"openai/{model}", messages=messages, tools=tools.CHAT_TOOLS)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            text, thing = tools.call(call.function.name, call.function.arguments)
            content: Any = text
            if thing is not None:
                image = {"type": "image_url", "image_url": {"url": tools.picture_uri(thing)}}
                content = [{"type": "text", "text": text}, image]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


main(*sys.argv[1:])
