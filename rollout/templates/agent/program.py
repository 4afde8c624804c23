"""An agent program: it reads files with a tool until the model answers.

It knows nothing of rollout. It reads the address, the key and the name of the model
from environment variables, and works in its working directory. Replace it by yours.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

PARAMETERS = {"type": "object", "properties": {"name": {"type": "string"}}}
READ_FILE = {
    "name": "read_file",
    "description": "Read a file of the working directory.",
    "parameters": PARAMETERS,
}
TOOLS = [{"type": "function", "function": READ_FILE}]


def main(question: str) -> None:
    """Ask the model and run its tool calls until it answers without a call."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    while True:
        message = ask(messages)
        messages.append(message)  # as it came, so that its tokens are known
        calls = message.get("tool_calls") or []
        if not calls:
            print(message["content"])
            return
        for call in calls:
            arguments = json.loads(call["function"]["arguments"])
            result = read_file(arguments.get("name", ""))
            message = {"role": "tool", "tool_call_id": call["id"], "content": result}
            messages.append(message)


def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the next message of the model."""
    body = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": TOOLS}
    headers = {
        "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
        "Content-Type": "application/json",
    }
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        message: dict[str, Any] = json.load(response)["choices"][0]["message"]
        return message


def read_file(name: str) -> str:
    """Run the tool."""
    path = Path(Path(name).name)
    return path.read_text() if path.is_file() else f"There is no file {name}."


if __name__ == "__main__":
    main(sys.argv[1])
