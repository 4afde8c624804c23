"""An agent over the openai SDK: it calculates with a tool until the model answers, and writes the answer into a file.

It knows nothing of rollout. The SDK reads the address and the key from environment variables, so it also runs against a
provider:

    OPENAI_MODEL=MODEL python examples/program/agent.py "Start with 7. Then add 4. What is the result?"
"""

import json
import os
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

from openai import OpenAI

NUMBER = {"type": "integer"}
PARAMETERS = {
    "type": "object",
    "properties": {"operation": {"enum": ["add", "subtract", "multiply"]}, "a": NUMBER, "b": NUMBER},
}
CALCULATE = {"name": "calculate", "description": "Do one operation on two whole numbers.", "parameters": PARAMETERS}


def calculate(arguments: str) -> str:
    """Return the result of the tool, or what is wrong with its arguments."""
    try:
        operation, a, b = itemgetter("operation", "a", "b")(json.loads(arguments))
        return str({"add": a + b, "subtract": a - b, "multiply": a * b}[operation])
    except (ValueError, KeyError, TypeError) as error:
        return f"wrong arguments: {error!r}"


def main(question: str) -> None:
    """Ask the model and run its calls until it answers without a call."""
    client = OpenAI()
    messages: list[Any] = [{"role": "user", "content": question}]
    tools: Any = [{"type": "function", "function": CALCULATE}]
    while True:
        completion = client.chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=messages, tools=tools)
        message: Any = completion.choices[0].message
        messages.append(message)  # as it came, so that its tokens are known
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            result = calculate(call.function.arguments)
            print(f"{call.function.arguments} gives {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(message.content)
    Path("answer.txt").write_text(message.content)


if __name__ == "__main__":
    main(sys.argv[1])
