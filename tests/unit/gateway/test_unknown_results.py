"""The result of a tool that belongs to no call is refused, as by the providers, with its place in the request."""

from pathlib import Path
from typing import Any

import pytest

from rollout.testing import embedded_policy
from tests.open_endpoints import PATHS, QUESTION, error_problem, good_body, open_endpoint

REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "chat": ({"messages": [QUESTION, {"role": "tool", "tool_call_id": "lost", "content": "4"}]}, "messages[1]"),
    "responses": (
        {"input": [QUESTION, {"type": "function_call_output", "call_id": "lost", "output": "4"}]},
        "input[1]",
    ),
    "messages": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "lost", "content": "4"}]},
            ]
        },
        "messages[0]",
    ),
}


@pytest.mark.parametrize("dialect", PATHS)
async def test_the_result_of_an_unknown_call_is_400_with_its_place(tmp_path: Path, dialect: str) -> None:
    body, place = REQUESTS[dialect]
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        answer = await opened.client.post(PATHS[dialect], json=good_body(dialect, **body))
        after = await opened.client.post(PATHS[dialect], json=good_body(dialect))
    assert answer.status_code == 400
    assert error_problem(dialect, answer.json()) is None
    message = answer.json()["error"]["message"]
    assert message.startswith(place)
    assert "'lost'" in message
    assert after.status_code == 200
