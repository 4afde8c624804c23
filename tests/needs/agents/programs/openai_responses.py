"""The openai SDK over Responses. Arguments: the model, the task, and any of the following options.

With `stream`, it reads the events of each answer. With `stored`, it sends only what is new, and `previous_response_id`
instead of the earlier items.
"""

import sys
from typing import Any

import openai
from openai.types.responses import Response

from tests.needs.agents.programs import tools

_TOOLS: list[Any] = [
    {"type": "function", "name": name, "description": text, "parameters": schema, "strict": True}
    for name, (text, schema) in tools.SCHEMAS.items()
]


def _answer(client: openai.OpenAI, streamed: bool, request: dict[str, Any]) -> Response:
    if not streamed:
        answer: Response = client.responses.create(**request)
        return answer
    with client.responses.stream(**request) as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


def main(model: str, task: str, *options: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    client = openai.OpenAI()
    streamed, stored = "stream" in options, "stored" in options
    items: list[Any] = [{"role": "user", "content": task}]
    previous: dict[str, Any] = {}
    for _ in range(tools.TURNS):
        request = {"model": model, "instructions": tools.INSTRUCTIONS, "input": items, "tools": _TOOLS, **previous}
        answer = _answer(client, streamed, request)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            print(answer.output_text)
            return
        if stored:
            previous, items = {"previous_response_id": answer.id}, []
        else:
            items += answer.output
        for call in calls:
            text, thing = tools.call(call.name, call.arguments)
            output: Any = text
            if thing is not None:
                image = {"type": "input_image", "image_url": tools.picture_uri(thing), "detail": "auto"}
                output = [{"type": "input_text", "text": text}, image]
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
    sys.exit(f"the model called tools for {tools.TURNS} turns")


main(*sys.argv[1:])
