"""Engines whose behaviour a test chooses, with a server of their own or without one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineUnreachable
from rollout.engine.stand_in import StandInEngine, completion
from tests.loopback_http import read_requests, serve_on_loopback

TOKENS = [5, 6, 7]
Answer = tuple[int, bytes] | bytes
Behaviour = Callable[[dict[str, Any]], Awaitable[Answer | None]]
"""Takes the body of a request for a completion. Bytes are the whole answer of a server, which then closes the
connection; None closes it without an answer."""

_numbers = itertools.count()


@dataclass(eq=False)
class FaultyEngine:
    """An engine that records its requests, and answers them as `behave` says.

    Attributes:
        behave: what it answers to a request for a completion.
        url: its root.
        paths: the routes of all requests.
        headers: the headers of all requests, if it has a server.
        generated: the bodies of the requests for a completion.
        aborted: the requests that were aborted.
        connections: how many connections its server accepted.
        arrived: set by every request for a completion.
        models: its answer to `/v1/models`.
        weights: the version of its weights; None if it has no routes that replace them.
        routes: its answers to other routes.
    """

    behave: Behaviour
    url: str = field(default_factory=lambda: f"http://engine-{next(_numbers)}")
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    generated: list[dict[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    models: Answer = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": 512}]}))
    weights: str | None = None
    routes: dict[str, Answer] = field(default_factory=dict)

    async def answer(self, path: str, body: bytes) -> Answer | None:
        self.paths.append(path)
        if path == "/v1/models":
            return self.models
        if path == "/weight_info" and self.weights is not None:
            return 200, orjson.dumps({"weight_version": self.weights})
        if path == "/is_paused" and self.weights is not None:
            return 200, orjson.dumps({"is_paused": False})
        if path == "/inference/v1/abort_requests":
            self.aborted += orjson.loads(body)["request_ids"]
            return 200, b""
        if path in self.routes:
            return self.routes[path]
        if path != "/inference/v1/generate":
            return 404, orjson.dumps({"detail": "Not Found"})
        self.generated.append(orjson.loads(body))
        self.arrived.set()
        return await self.behave(self.generated[-1])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        async for request in read_requests(reader):
            self.headers.append(request.headers)
            answer = await self.answer(request.path, request.body)
            if answer is None or isinstance(answer, bytes):
                writer.write(answer or b"")
                await writer.drain()
                break
            head = f"HTTP/1.1 {answer[0]} -\r\ncontent-length: {len(answer[1])}\r\n\r\n"
            writer.write(head.encode() + answer[1])
            await writer.drain()


def client_of(*engines: FaultyEngine, timeout: float = 20, **settings: Any) -> EngineClient:
    """Return a client of these engines, without servers; all other engines are unreachable."""
    by_url = {engine.url: engine for engine in engines}

    async def answer(url: str, body: bytes) -> tuple[int, bytes]:
        scheme, _, host, path = url.split("/", 3)
        engine = by_url.get(f"{scheme}//{host}")
        answered = None if engine is None else await engine.answer(f"/{path}", body)
        if not isinstance(answered, tuple):
            raise EngineUnreachable(f"no answer from {url}")
        return answered

    urls = settings.pop("urls", list(by_url))
    return EngineClient(urls, "m", timeout=timeout, transport=StandInEngine(answer), **settings)


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[FaultyEngine]:
    """Start a server with this behaviour."""
    engine = FaultyEngine(behave)
    async with serve_on_loopback(engine.serve) as engine.url:
        yield engine


def completed(body: dict[str, Any], **changed_fields: Any) -> tuple[int, bytes]:
    """Return a valid answer to a request."""
    return 200, completion(orjson.dumps(body), TOKENS, **changed_fields)


async def succeed(body: dict[str, Any]) -> Answer:
    """Answer correctly."""
    return completed(body)


def fail_with(status: int, times: int) -> Behaviour:
    """Answer with this status so many times, and then correctly."""
    left = times

    async def behave(body: dict[str, Any]) -> Answer:
        nonlocal left
        left -= 1
        if left >= 0:
            return status, orjson.dumps({"error": {"message": f"test error {status}"}})
        return completed(body)

    return behave


async def close(body: dict[str, Any]) -> None:
    """Close the connection without an answer."""


async def hang(body: dict[str, Any]) -> Answer:
    """Never answer."""
    await asyncio.sleep(3600)
    raise AssertionError("a test waited for an hour")
