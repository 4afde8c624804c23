"""A body that takes too long to read, or makes our own code fail, ends its own rollout and nothing else."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollout.gateway.dialects.messages import MessagesDialect
from rollout.gateway.dialects.request_body import RequestBody
from rollout.testing import embedded_policy
from rollout.worker import containment
from rollout.worker.containment import LoopWatchdog
from tests.open_endpoints import PATHS, OpenedEndpoint, error_problem, good_body, open_endpoint

ENDLESS = "endless"
"""A body with this word is one that our code cannot handle."""


def _endless_read() -> Callable[[MessagesDialect, RequestBody], Any]:
    """Return a `_read` in the module of the dialect that runs for a minute for the body of a test."""
    code = compile(
        "def read(dialect, body):\n"
        "    deadline = time.monotonic() + 60\n"
        "    while word in body.data and time.monotonic() < deadline:\n"
        "        pass\n"
        "    return right_read(dialect, body)\n",
        "messages.py",
        "exec",
    )
    namespace: dict[str, Any] = {
        "__name__": MessagesDialect.__module__,
        "word": ENDLESS.encode(),
        "right_read": MessagesDialect._read,
        "time": time,
    }
    exec(code, namespace)
    return namespace["read"]  # type: ignore[no-any-return]


async def _require_good(opened: OpenedEndpoint) -> None:
    answer = await opened.client.post(PATHS["messages"], json=good_body("messages"))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", [PATHS["messages"], "/v1/messages/count_tokens"])
async def test_a_body_that_takes_too_long_to_read_ends_its_own_rollout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(containment, "_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(MessagesDialect, "_read", _endless_read())
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as other:
        with LoopWatchdog(1.0, lambda text: None):
            async with open_endpoint(policy) as opened:
                answer = await opened.client.post(path, json=good_body("messages", system=ENDLESS))
            await _require_good(other)
    assert answer.status_code == 500
    assert error_problem("messages", answer.json()) is None
    assert opened.played is not None
    assert opened.played.failure is not None
    assert opened.played.failure.type == "EventLoopHeld"
    assert "rollout.gateway.dialects.messages" in opened.played.failure.message
    assert other.played is not None
    assert other.played.failure is None


async def test_an_error_in_our_own_code_ends_its_own_rollout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right_read = MessagesDialect.read

    def read(dialect: MessagesDialect, body: RequestBody) -> Any:
        return [][1] if ENDLESS.encode() in body.data else right_read(dialect, body)

    monkeypatch.setattr(MessagesDialect, "read", read)
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as other:
        async with open_endpoint(policy) as opened:
            answer = await opened.client.post(PATHS["messages"], json=good_body("messages", system=ENDLESS))
        await _require_good(other)
    assert (answer.status_code, error_problem("messages", answer.json())) == (500, None)
    assert opened.played is not None
    assert opened.played.failure is not None
    assert opened.played.failure.type == "IndexError"
    assert other.played is not None
    assert other.played.failure is None
