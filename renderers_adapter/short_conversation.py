"""A short conversation, whose tokens show how a family's template closes an answer.

The token depends on the message after the answer: for example, GLM closes an answer with the header of that message.
"""

from typing import Any

ANSWER_INDEX = 2
"""The index of the answer in the conversation."""

_CALL = {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}


def conversation_until(last_role: str) -> list[dict[str, Any]]:
    """Return a conversation that ends with a question after an answer, or with the result of the answer's call."""
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look."}]
    if last_role == "tool":
        answer = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        return [*asked, answer, {"role": "tool", "tool_call_id": _CALL["id"], "name": "look", "content": "red"}]
    return [*asked, {"role": "assistant", "content": "red"}, {"role": last_role, "content": "Sure?"}]
