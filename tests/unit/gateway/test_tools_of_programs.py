"""Tools that are no functions: they are flattened, converted, or left out and counted; never an error of the server."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout import Environment, Model, Score, Task
from rollout.environments.endpoint import Endpoint
from rollout.testing import embedded_policy, play
from tests.open_endpoints import PATHS, TIMEOUT, error_problem, good_body

FUNCTION = {
    "chat": {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
    "responses": {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}},
    "messages": {"name": "add", "input_schema": {"type": "object", "properties": {}}},
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"type": "web_search"}, {"type": "local_shell"}],
    "responses": [
        {"type": "web_search"},
        {"type": "web_search", "filters": {"allowed_domains": ["a"]}},
        {"type": "local_shell"},
        {"type": "computer_use_preview", "display_width": 1},
        {"type": "mcp", "server_label": "a", "server_url": "http://a"},
        {"type": "namespace", "name": "web", "tools": [{"type": "web_search"}]},
        {"type": "a_new_type", "name": 5},
    ],
    "messages": [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "computer_20250124", "name": "computer", "display_width_px": 1},
        {"type": "a_new_type_20300101"},
    ],
}
IGNORED = {
    "chat": {"web_search": 1, "local_shell": 1},
    "responses": {"web_search": 3, "local_shell": 1, "computer_use_preview": 1, "mcp": 1, "a_new_type": 1},
    "messages": {"web_search_20250305": 1, "bash_20250124": 1, "computer_20250124": 1, "a_new_type_20300101": 1},
}


async def _ask(directory: Path, dialect: str, tools: Any) -> tuple[int, Any, dict[str, int]]:
    """Return the status and the body of the answer to a request with tools, and what was counted."""
    found: list[tuple[int, Any]] = []
    counted: dict[str, int] = {}

    async def run(_: Environment, task: Task, model: Model) -> Score:
        async with model.endpoint() as endpoint:
            found.append(await _post(endpoint, dialect, tools))
        counted.update(model.counters.gateway)  # type: ignore[attr-defined]
        return Score(1.0)

    async with embedded_policy(directory) as policy:
        await play(type("Asking", (Environment,), {"run": run}), policy=policy)
    return *found[0], counted


async def _post(endpoint: Endpoint, dialect: str, tools: Any) -> tuple[int, Any]:
    url = f"{endpoint.anthropic_base_url}{PATHS[dialect]}"
    async with httpx.AsyncClient(headers={"x-api-key": endpoint.key}, timeout=TIMEOUT) as client:
        answer = await client.post(url, json=good_body(dialect, tools=tools))
        return answer.status_code, answer.json()


@pytest.mark.parametrize("dialect", PATHS)
async def test_tools_that_are_no_functions_are_left_out_and_counted(tmp_path: Path, dialect: str) -> None:
    status, _, counted = await _ask(tmp_path, dialect, [FUNCTION[dialect], *OTHERS[dialect]])
    assert status == 200
    prefix = "ignored tools: "
    assert {name.removeprefix(prefix): n for name, n in counted.items() if name.startswith(prefix)} == IGNORED[dialect]


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_request_with_no_other_tools_is_one_without_tools(tmp_path: Path, dialect: str) -> None:
    status, with_tools, _ = await _ask(tmp_path / "with", dialect, OTHERS[dialect])
    _, without, _ = await _ask(tmp_path / "without", dialect, [])
    assert status == 200
    assert _prompt_tokens(with_tools) == _prompt_tokens(without)


def _prompt_tokens(answer: Any) -> int:
    usage = answer["usage"]
    return int(usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"])


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("tools", [5, {}, "all", [5], [None], [[]], [{"type": 5}], [{"type": ["function"]}]], ids=str)
async def test_tools_of_a_wrong_type_are_refused(tmp_path: Path, dialect: str, tools: Any) -> None:
    status, answer, _ = await _ask(tmp_path, dialect, tools)
    assert (status, error_problem(dialect, answer)) == (400, None)
    assert "tools" in answer["error"]["message"]
