"""The bodies of requests that are refused do not stay in the memory of the worker."""

import ctypes
import gc
import json
from contextlib import suppress
from pathlib import Path

import pytest

from rollout.testing import embedded_policy
from tests.open_endpoints import PATHS, good_body, open_endpoint

_BODY_BYTES = 8 << 20
_REQUESTS = 24
_ALLOWED_BYTES = 96 << 20
"""Much less than all bodies together, and enough for what the allocator keeps."""


def memory() -> int:
    """Return the resident memory of this process, in bytes, without what its allocator only keeps."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def broken_body(dialect: str, number: int) -> bytes:
    """Return a large body that is no JSON."""
    return json.dumps(good_body(dialect, number=number, padding="x" * _BODY_BYTES)).encode()[:-1]


@pytest.mark.parametrize("dialect", PATHS)
async def test_refused_bodies_are_not_kept_in_memory(tmp_path: Path, dialect: str) -> None:
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        for number in range(4):
            await opened.client.post(PATHS[dialect], content=broken_body(dialect, number))
        before = memory()
        for number in range(4, 4 + _REQUESTS):
            answer = await opened.client.post(PATHS[dialect], content=broken_body(dialect, number))
            assert answer.status_code == 400
        assert memory() - before < _ALLOWED_BYTES
        good = await opened.client.post(PATHS[dialect], json=good_body(dialect))
    assert good.status_code == 200
