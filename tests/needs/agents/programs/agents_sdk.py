"""The Agents SDK, which runs the loop itself. Arguments: the model, the task, and `chat` or `responses`, the dialect."""

import sys
from typing import Any

import agents

from tests.needs.agents.programs import tools


def look_at(name: str) -> Any:
    """Look at a thing; the result is a picture of it."""
    return agents.ToolOutputImage(image_url=tools.picture_uri(name))


def main(model: str, task: str, dialect: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    agents.set_tracing_disabled(True)
    agents.set_default_openai_api("chat_completions" if dialect == "chat" else "responses")
    functions = [agents.function_tool(tool) for tool in (tools.add, tools.lookup, look_at)]
    agent = agents.Agent(name="player", instructions=tools.INSTRUCTIONS, model=model, tools=functions)
    print(agents.Runner.run_sync(agent, task, max_turns=tools.TURNS).final_output)


main(*sys.argv[1:])
