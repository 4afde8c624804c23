"""Finds a known agent by its name."""

from difflib import SequenceMatcher

from rollout.programs.agents.base import Agent
from rollout.programs.agents.claude_code import CLAUDE_CODE
from rollout.programs.agents.codex import CODEX
from rollout.programs.agents.mini_swe_agent import MINI_SWE_AGENT
from rollout.programs.agents.opencode import OPENCODE

AGENTS = {agent.name: agent for agent in (CLAUDE_CODE, CODEX, MINI_SWE_AGENT, OPENCODE)}
"""The known agents by their names."""


def find_agent(name: str) -> Agent:
    """Return the agent with this name.

    Raises:
        ValueError: no agent has this name; the error names those that are known, the closest one first.
    """
    if name in AGENTS:
        return AGENTS[name]
    closest_first = sorted(AGENTS, key=lambda known: -SequenceMatcher(None, name, known).ratio())
    raise ValueError(
        f"there is no agent {name!r}; the known ones are {', '.join(closest_first)}. Start any other program with "
        "environment.command"
    )
