"""An agent program: it looks at pictures with a tool of its own, until the model answers without a call.

It knows nothing of rollout. Like most agents, it reads the address, the key and the name of the model from environment
variables, so it also runs against a provider:

    python examples/agents/agent.py DIRECTORY "Which colours have the pictures?"
"""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

MAX_TURNS = 8
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a picture.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}


def look(directory: Path, name: str) -> list[dict[str, Any]]:
    """Return the result of the tool: the picture, or what is wrong."""
    path = directory / Path(name).name
    if not path.is_file():
        return [{"type": "text", "text": f"There is no picture {name}."}]
    data = base64.b64encode(path.read_bytes()).decode()
    return [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]


def main(directory: Path, question: str) -> None:
    """Play until the model answers without a call, and print its answer."""
    names = ", ".join(sorted(path.name for path in directory.glob("*.png")))
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": f"You have these pictures: {names}."},
        {"role": "user", "content": question},
    ]
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    with httpx.Client(base_url=os.environ["OPENAI_BASE_URL"], headers=headers, timeout=600) as client:
        for _ in range(MAX_TURNS):
            request = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": [LOOK]}
            response = client.post("/chat/completions", json=request)
            response.raise_for_status()
            message = response.json()["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                print(message["content"])
                return
            for call in message["tool_calls"]:
                content = look(directory, str(json.loads(call["function"]["arguments"]).get("name")))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    sys.exit(f"no answer after {MAX_TURNS} turns")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
