"""A program that sends many large requests that are not played does not fill the memory of its worker."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollout.testing import embedded_policy
from tests.open_endpoints import PATHS, QUESTION, good_body, open_endpoint

_BODY_BYTES = 8 << 20
_REQUESTS = 24
_ALLOWED_BYTES = 96 << 20
"""Much less than all bodies together, and enough for what the allocator keeps."""


def memory() -> int:
    """Return the resident memory of this process, in bytes."""
    gc.collect()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def broken(dialect: str, number: int) -> bytes:
    """Return a body that is no JSON."""
    return json.dumps(good_body(dialect, number=number, padding="x" * _BODY_BYTES)).encode()[:-1]


def wrong_setting(dialect: str, number: int) -> bytes:
    """Return a body with a large message and a setting that is refused."""
    return large(dialect, number, temperature="hot")


def too_long(dialect: str, number: int) -> bytes:
    """Return a body whose message does not fit into the context."""
    return large(dialect, number)


def large(dialect: str, number: int, **more: Any) -> bytes:
    message = {**QUESTION, "content": f"{number} " + "x y " * (_BODY_BYTES // 4)}
    body = good_body(dialect, **{"input" if dialect == "responses" else "messages": [message]}, **more)
    return json.dumps(body).encode()


@pytest.mark.parametrize("make", [broken, wrong_setting, too_long])
@pytest.mark.parametrize("dialect", PATHS)
async def test_requests_that_are_not_played_are_not_kept_in_memory(
    tmp_path: Path, dialect: str, make: Callable[[str, int], bytes]
) -> None:
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        for number in range(4):
            await opened.client.post(PATHS[dialect], content=make(dialect, number))
        before = memory()
        for number in range(4, 4 + _REQUESTS):
            await opened.client.post(PATHS[dialect], content=make(dialect, number))
        assert memory() - before < _ALLOWED_BYTES
        good = await opened.client.post(PATHS[dialect], json=good_body(dialect))
    assert good.status_code == 200
