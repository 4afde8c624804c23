"""Sends hostile bodies to an endpoint of the gateway over HTTP, in all three dialects.

Each body is answered, or refused with a status of 400 to 499 in the shape of its dialect. The next good request of the
same program is answered. At the end, the script prints for how long one body blocked the event loop.

python -m tests.fuzz.fuzz_gateway --count 2000 --seed 0
"""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from rollout.config.gateway import GatewayConfig
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy
from tests.fuzz.fuzzing import fuzz
from tests.fuzz.gateway_bodies import GatewayRequest, HostileBodies
from tests.open_endpoints import PATHS, OpenedEndpoint, error_problem, good_body, open_endpoint

_CASES_OF_AN_ENDPOINT = 50
_MAX_BODY_BYTES = 24 << 20
_MAX_ERROR_CHARS = 3000
_TICK = 0.005


class WrongAnswerError(Exception):
    """The gateway answered a hostile body, or the good request after it, in a wrong way."""


class Target:
    """An endpoint, which is opened again after some cases, and the longest time that its event loop was blocked."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._policy: PolicyClient | None = None
        self._opened: OpenedEndpoint | None = None
        self._cases = 0
        self._blocked = [(0.0, "")]

    async def start(self) -> None:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        config = GatewayConfig(max_body_bytes=_MAX_BODY_BYTES, constrained="allow")
        self._policy = await self._stack.enter_async_context(
            embedded_policy(directory, sampling={"max_tokens": 2}, gateway=config)
        )
        self._endpoint_stack = AsyncExitStack()

    async def stop(self) -> None:
        await self._close_endpoint()
        await self._stack.aclose()
        for seconds, kind in sorted(self._blocked, reverse=True)[:5]:
            print(f"  blocked the event loop for {seconds:.3f} s: {kind}", flush=True)

    async def send(self, sent: GatewayRequest) -> str:
        """Send a hostile request and a good one; return the outcome of the first."""
        if self._opened is None or self._cases % _CASES_OF_AN_ENDPOINT == 0:
            await self._close_endpoint()
            assert self._policy is not None
            self._opened = await self._endpoint_stack.enter_async_context(open_endpoint(self._policy))
        self._cases += 1
        client = self._opened.client
        answer, blocked = await self._measured(client.post(sent.path, content=sent.body, headers=sent.headers))
        self._blocked = sorted([*self._blocked, (blocked, sent.kind)], reverse=True)[:5]
        check_answer(sent.dialect, answer)
        good = await client.post(PATHS[sent.dialect], json=good_body(sent.dialect))
        if good.status_code != 200:
            raise WrongAnswerError(f"after {sent.kind}, a good request gets {good.status_code}: {good.text[:500]}")
        return f"{sent.dialect}: {answer.status_code}"

    async def _measured(self, request: Any) -> tuple[httpx.Response, float]:
        """Return an answer, and the longest time for which the event loop was blocked until it was there."""
        task = asyncio.ensure_future(request)
        longest = 0.0
        while not task.done():
            before = time.monotonic()
            await asyncio.wait([task], timeout=_TICK)
            longest = max(longest, time.monotonic() - before - _TICK)
        return await task, longest

    async def _close_endpoint(self) -> None:
        await self._endpoint_stack.aclose()
        if self._opened is not None:
            played, self._opened = self._opened.played, None
            if played is None or played.failure is not None:
                raise WrongAnswerError(f"the rollout failed: {played and played.failure}")


def check_answer(dialect: str, answer: httpx.Response) -> None:
    """Raise WrongAnswerError if a hostile body got something else than an answer, or a refusal in the right shape."""
    if answer.status_code == 200:
        if answer.headers["content-type"] == "text/event-stream" and b"server_error" in answer.content:
            raise WrongAnswerError(f"the stream ends with an error: {answer.text[-500:]}")
        return
    if not 400 <= answer.status_code < 500:
        raise WrongAnswerError(f"the status is {answer.status_code}: {answer.text[:500]}")
    if len(answer.content) > _MAX_ERROR_CHARS:
        raise WrongAnswerError(f"the error has {len(answer.content):,} bytes: {answer.text[:500]}")
    if (problem := error_problem(dialect, answer.json())) is not None:
        raise WrongAnswerError(f"{problem}: {answer.text[:500]}")


_loop = asyncio.new_event_loop()
_target = Target()


@contextmanager
def serving() -> Iterator[None]:
    """Start an engine and the gateway in this process, and stop them at the end."""
    _loop.run_until_complete(_target.start())
    try:
        yield
    finally:
        _loop.run_until_complete(_target.stop())


def attempt(sent: GatewayRequest) -> str:
    return _loop.run_until_complete(_target.send(sent))


def make(chance: random.Random) -> GatewayRequest:
    return HostileBodies(chance).request()


if __name__ == "__main__":
    sys.exit(fuzz(__doc__ or "", make, attempt, named_errors=(), operations=None, around=serving))
