"""A small agent program with habits, such as to drop the reasoning. It needs only the standard library.

python small_agent.py HABIT…
"""

import contextlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weigh",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"type": "string"}, "amount": {"type": "number"}},
                "required": ["amount", "thing"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "delete_file",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    },
]
FINAL_TURNS = 8


def ask(messages: list[dict[str, Any]], habits: set[str], **more: Any) -> dict[str, Any]:
    """Send a request, and return the message of the answer."""
    body: dict[str, Any] = {"model": os.environ["OPENAI_MODEL"], "messages": messages, **more}
    if "no tools" not in habits:
        body.setdefault("tools", [*TOOLS, {"type": "web_search"}] if "web search" in habits else TOOLS)
    if "format" in habits:
        body["response_format"] = {"type": "json_object"}
    if "forced tool" in habits:
        body["tool_choice"] = "required"
    if "sampling" in habits:
        body |= {"temperature": 0.3, "max_tokens": 4000}
    return dict(post("/chat/completions", body, habits)["choices"][0]["message"])


def post(path: str, body: Any, habits: set[str]) -> Any:
    """Send a body, and return the answer."""
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    tries = 0
    while True:
        tries += 1
        if "new body at retries" in habits:
            body = {**body, "user": f"try {tries}"}
        request = urllib.request.Request(base_url(habits) + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            if "loop at 400" not in habits and not ("compacts" in habits and tries < 2):
                raise
            if "waits" in habits:
                time.sleep(1)
            if "compacts" in habits:
                body = {**body, "messages": [body["messages"][0], {"role": "user", "content": "Sum it up."}]}
        except (OSError, ValueError, http.client.HTTPException):
            if "retries" not in habits or tries > 2:
                raise


def base_url(habits: set[str]) -> str:
    """Return the address of the policy, as the program takes it."""
    address = os.environ["OPENAI_BASE_URL"]
    if "adds v1" in habits:
        return f"{address}/v1"
    return address.removesuffix("/v1") if "removes v1" in habits else address


def changed(message: dict[str, Any], habits: set[str]) -> dict[str, Any]:
    """Return an answer as the program sends it back."""
    message = {key: value for key, value in message.items() if value is not None}
    if "drops reasoning" in habits:
        message.pop("reasoning_content", None)
    if "moves reasoning" in habits and "reasoning_content" in message:
        message["thoughts"] = message.pop("reasoning_content")
    if "edits text" in habits and message.get("content"):
        message["content"] = message["content"].upper()
    for call in message.get("tool_calls") or ():
        arguments = json.loads(call["function"]["arguments"])
        if "writes arguments again" in habits:
            call["function"]["arguments"] = json.dumps(dict(sorted(arguments.items())))
        if "fills in defaults" in habits:
            call["function"]["arguments"] = json.dumps({**arguments, "unit": "kg"})
    return message


def main(habits: set[str]) -> None:
    """Play until the policy calls no tool."""
    if "asks nothing" in habits:
        return
    if "prints the key" in habits:
        sys.exit(f"the key is {os.environ['OPENAI_API_KEY']}")
    if "looks at models" in habits:
        headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
        urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/models", headers=headers))
    if "tries v1" in habits:
        with contextlib.suppress(urllib.error.HTTPError):
            post("/chat/completions", {}, {"adds v1"})
    if "title" in habits:
        ask([{"role": "user", "content": "Say a title."}], habits | {"no tools"})
    system = {"role": "system", "content": "You weigh things."}
    messages: list[dict[str, Any]] = [system, {"role": "user", "content": "Weigh two things at once."}]
    if "example" in habits:
        messages[1:1] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    for _ in range(FINAL_TURNS):
        if "clock" in habits:
            system["content"] = f"You weigh things. It is {time.perf_counter_ns()}."
        answer = ask(messages, habits)
        messages.append(changed(answer, habits))
        calls = answer.get("tool_calls") or []
        if not calls:
            break
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "2 kg"} for call in calls]
    while "never ends" in habits:
        messages.append({"role": "user", "content": "Go on."})
        messages.append(changed(ask(messages, habits), habits))
    if "hangs" in habits:
        time.sleep(3600)


main(set(sys.argv[1:]))
