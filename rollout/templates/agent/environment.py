"""An agent program looks into notes with a tool of its own, and answers a question."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
from rollout import Environment, EnvironmentSettings, Model, Score, Task

DOORS = ("red", "green", "blue", "white")
PARAMETERS = {"type": "object", "properties": {"door": {"type": "string"}}}
READ_NOTE = {
    "name": "read_note",
    "description": "Read the note about one door.",
    "parameters": PARAMETERS,
}
TOOLS = [{"type": "function", "function": READ_NOTE}]


class DoorSettings(EnvironmentSettings):
    """The keys of the section `environment` in the YAML."""

    max_turns: int = 6  # answers of the model that the agent asks for


class FindCode(Environment):
    """Gives the program a task and an address of the model, and scores what it did."""

    Settings: ClassVar[type[EnvironmentSettings]] = DoorSettings
    settings: DoorSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout, and return its score. The seed determines the codes."""
        rng = random.Random(task.seed)
        notes = {door: str(rng.randint(100, 999)) for door in DOORS}
        first, second = rng.sample(DOORS, 2)
        question = f"Say the code of the {first} door and that of the {second} door."
        async with model.endpoint() as endpoint:
            # Replace this call by your program. A command reads endpoint.environ, and
            # a blocking one needs asyncio.to_thread: docs/agents.md shows both.
            agent = Agent(endpoint.base_url, endpoint.key, endpoint.model, notes)
            await agent.play(question, self.settings.max_turns)
        answer = endpoint.transcript.text  # the last answer
        right = [notes[door] in answer for door in (first, second)]
        turns = len(endpoint.transcript.turns)
        return Score(sum(right) / 2, metrics={"turns": turns})


@dataclass
class Agent:
    """A small agent for chat completions. It knows nothing of rollout.

    Attributes:
        base_url: the address of the API.
        key: the key for it.
        model: the name of the model.
        notes: what the tool can read, by door.
    """

    base_url: str
    key: str
    model: str
    notes: Mapping[str, str]

    async def play(self, question: str, max_turns: int) -> None:
        """Ask the model and run its tool calls until it answers without a call."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"{self.base_url}/chat/completions"
        async with httpx.AsyncClient(headers=headers, timeout=600) as client:
            for _ in range(max_turns):
                request = {"model": self.model, "messages": messages, "tools": TOOLS}
                response = await client.post(url, json=request)
                response.raise_for_status()
                message = response.json()["choices"][0]["message"]
                messages.append(message)  # as it came, so that its tokens are known
                calls = message.get("tool_calls") or []
                if not calls:
                    return
                messages += [self.result(call) for call in calls]

    def result(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Run one tool call, and return the message with its result."""
        door = json.loads(call["function"]["arguments"]).get("door")
        text = self.notes.get(door, f"There is no door {door}.")
        return {"role": "tool", "tool_call_id": call["id"], "content": text}
