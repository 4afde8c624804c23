"""LangGraph with the model of langchain-openai, over chat completions. Arguments: the model and the task."""

import sys
from typing import Any

from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

from tests.needs.agents.programs import tools


def look_at(name: str) -> list[dict[str, Any]]:
    """Look at a thing; the result is a picture of it."""
    image = {"type": "image_url", "image_url": {"url": tools.picture_uri(name)}}
    return [{"type": "text", "text": f"This is {name}:"}, image]


def main(model: str, task: str) -> None:
    """Play until the model calls no tool, then print its answer."""
    agent = create_react_agent(ChatOpenAI(model=model), [tools.add, tools.lookup, look_at], prompt=tools.INSTRUCTIONS)
    state = agent.invoke({"messages": [("user", task)]}, {"recursion_limit": 2 * tools.TURNS})
    print(state["messages"][-1].text)


main(*sys.argv[1:])
