"""A program with the standard library alone: it asks the policy, and writes the files that the policy wants.

plain_agent.py QUESTION
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

PARAMETERS = {"type": "object", "properties": {"name": {"type": "string"}, "text": {"type": "string"}}}
WRITE = {"type": "function", "function": {"name": "write_file", "description": "Write.", "parameters": PARAMETERS}}


def ask(messages: list[Any]) -> Any:
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": [WRITE]}).encode()
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{os.environ['OPENAI_BASE_URL']}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)["choices"][0]["message"]


def main() -> None:
    messages: list[Any] = [{"role": "user", "content": sys.argv[1]}]
    while True:
        message = ask(messages)
        messages.append(message)
        if not message.get("tool_calls"):
            break
        for call in message["tool_calls"]:
            arguments = json.loads(call["function"]["arguments"])
            Path(arguments["name"]).write_text(arguments["text"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "written"})
    print(f"the answer: {message['content']}")


if __name__ == "__main__":
    main()
