"""A program that plays an agent over HTTP: `agent_program.py MARKER TASK TURNS`. It prints the last answer.

It knows nothing of this project: it reads the variables of OpenAI's SDK. The marker is there for tests that look for
programs that are left.
"""

import os
import sys
from typing import Any

import httpx

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def play(task: str, turns: int) -> str:
    """Play a conversation with tool calls until the model has answered this number of times."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Work on {task}."}]
    text = ""
    headers = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    with httpx.Client(base_url=os.environ["OPENAI_BASE_URL"], headers=headers, timeout=120, trust_env=False) as http:
        for _ in range(turns):
            body = {"model": "policy", "messages": messages, "tools": [TOOL]}
            answer = http.post("/chat/completions", json=body).raise_for_status().json()
            message = answer["choices"][0]["message"]
            text = message["content"] or ""
            messages.append(message)
            for call in message.get("tool_calls", ()):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": "3"})
            if not message.get("tool_calls"):
                messages.append({"role": "user", "content": "Go on."})
    return text


if __name__ == "__main__":
    print(play(sys.argv[2], int(sys.argv[3])))
