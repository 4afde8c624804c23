"""The Agents SDK, which runs the loop itself. Arguments: the model, the task, and `chat` or `responses`, the dialect.

In chat completions this SDK replaces the picture of a tool's result by a placeholder. There a filter, which the SDK
calls with the whole input before each request, puts each picture into a user message behind the result.
"""

import json
import sys
from typing import Any

import agents

from tests.needs.agents.programs import tools


def look_at(name: str) -> Any:
    """Look at a thing; the result is a picture of it."""
    return agents.ToolOutputImage(image_url=tools.picture_uri(name))


def look_at_below(name: str) -> str:
    """Look at a thing; its picture follows in the next message."""
    return f"This is {name}:"


def _with_pictures(data: Any) -> Any:
    items: list[Any] = []
    things: dict[str, str] = {}
    for item in data.model_data.input:
        items.append(item)
        if item.get("type") == "function_call" and item["name"] == "look_at":
            things[item["call_id"]] = json.loads(item["arguments"])["name"]
        if item.get("type") == "function_call_output" and item["call_id"] in things:
            image = {"type": "input_image", "image_url": tools.picture_uri(things[item["call_id"]]), "detail": "auto"}
            items.append({"role": "user", "content": [image]})
    return agents.run.ModelInputData(input=items, instructions=data.model_data.instructions)


def main(model: str, task: str, dialect: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    agents.set_tracing_disabled(True)
    functions = [agents.function_tool(tool) for tool in (tools.add, tools.lookup)]
    if dialect == "chat":
        agents.set_default_openai_api("chat_completions")
        functions.append(agents.function_tool(look_at_below, name_override="look_at"))
        config = agents.RunConfig(call_model_input_filter=_with_pictures)
    else:
        functions.append(agents.function_tool(look_at))
        config = agents.RunConfig()
    agent = agents.Agent(name="player", instructions=tools.INSTRUCTIONS, model=model, tools=functions)
    print(agents.Runner.run_sync(agent, task, max_turns=tools.TURNS, run_config=config).final_output)


main(*sys.argv[1:])
