"""The Agents SDK, which runs the loop itself.

Arguments: the model, the task, `chat` or `responses` for the dialect, and `stream` for streamed answers.

In chat completions this SDK replaces the picture of a tool's result by a placeholder. There a filter, which the SDK
calls with the whole input before each request, puts each picture into a user message behind the result.
"""

import asyncio
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


async def _play(agent: Any, task: str, config: Any, streamed: bool) -> str:
    if not streamed:
        result = await agents.Runner.run(agent, task, max_turns=tools.TURNS, run_config=config)
        return str(result.final_output)
    streaming = agents.Runner.run_streamed(agent, task, max_turns=tools.TURNS, run_config=config)
    async for _ in streaming.stream_events():
        pass
    return str(streaming.final_output)


def main(model: str, task: str, dialect: str, *options: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    agents.set_tracing_disabled(True)
    functions = [agents.function_tool(tool) for tool in (tools.add, tools.lookup)]
    if dialect == "chat":
        agents.set_default_openai_api("chat_completions")  # before RunConfig, which reads it
        functions.append(agents.function_tool(look_at_below, name_override="look_at"))
        config = agents.RunConfig(call_model_input_filter=_with_pictures)
    else:
        functions.append(agents.function_tool(look_at))
        config = agents.RunConfig()
    agent = agents.Agent(name="player", instructions=tools.INSTRUCTIONS, model=model, tools=functions)
    print(asyncio.run(_play(agent, task, config, "stream" in options)))


main(*sys.argv[1:])
