"""pydantic-ai over chat completions. Arguments: the model and the task."""

import sys
from typing import Any

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel

from tests.needs.agents.programs import tools


def look_at(name: str) -> Any:
    """Look at a thing; the result is a picture of it."""
    return BinaryContent(tools.picture(name), media_type="image/png")


def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    functions = [tools.add, tools.lookup, look_at]
    agent = Agent(OpenAIChatModel(model), instructions=tools.INSTRUCTIONS, tools=functions)
    print(agent.run_sync(task).output)


main(*sys.argv[1:])
