"""Small engines that misbehave as told, on the test's own event loop, and requests to send to them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pytest

from renderers_adapter.tokens import ExpandedIds, Placeholder, as_logical_ids
from rollout.engine.image_refs import ImageRef
from rollout.engine.request import GenerateRequest
from tests.loopback_http import read_requests, serve_on_loopback

PAD = 99
TOKENS = [5, 6, 7]
Answer = tuple[int, bytes] | bytes
Behaviour = Callable[[dict[str, Any]], Awaitable[Answer | None]]
"""Takes the body of a request for a completion. Bytes go out as they are, and the connection is closed after them;
None closes it without an answer."""


@dataclass(eq=False)
class FaultyEngine:
    """What an engine was asked, and how it behaves from now on."""

    behave: Behaviour
    url: str = ""
    generated: list[dict[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    models: Answer = (200, orjson.dumps({"data": [{"id": "m", "max_model_len": 512}]}))
    weights: str | None = None
    """What it calls them; none: it was started without the routes by which they are replaced."""

    async def answer(self, path: str, body: bytes) -> Answer | None:
        if path == "/v1/models":
            return self.models
        if path == "/weight_info" and self.weights is not None:
            return 200, orjson.dumps({"weight_version": self.weights})
        if path == "/is_paused" and self.weights is not None:
            return 200, orjson.dumps({"is_paused": False})
        if path in ("/weight_info", "/is_paused"):
            return 404, orjson.dumps({"detail": "Not Found"})
        if path == "/inference/v1/abort_requests":
            self.aborted += orjson.loads(body)["request_ids"]
            return 200, b""
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


def completion(body: dict[str, Any], **changed: Any) -> Answer:
    """A sound answer to a request."""
    content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in TOKENS]
    choice = {"index": 0, "token_ids": TOKENS, "logprobs": {"content": content}, "finish_reason": "stop", **changed}
    return 200, orjson.dumps({"choices": [choice], "prompt_token_ids": body["token_ids"], "mm_placeholders": None})


async def well(body: dict[str, Any]) -> Answer:
    return completion(body)


def failing(status: int, times: int) -> Behaviour:
    """Answers this status so many times, and then as it should."""
    left = times

    async def behave(body: dict[str, Any]) -> Answer:
        nonlocal left
        left -= 1
        if left >= 0:
            return status, orjson.dumps({"error": {"message": f"as told, {status}"}})
        return completion(body)

    return behave


async def closing(body: dict[str, Any]) -> None:
    """Gives up in the middle."""


async def hanging(body: dict[str, Any]) -> Answer:
    """Never answers."""
    await asyncio.sleep(3600)
    raise AssertionError("a test waited for an hour")


@pytest.fixture
def behaviours() -> Any:
    """The ways in which an engine can behave, by name."""
    return {"well": well, "closing": closing, "hanging": hanging, "failing": failing, "completion": completion}


@pytest.fixture
def faulty() -> Callable[[Behaviour], AbstractAsyncContextManager[FaultyEngine]]:
    """Starts an engine that behaves so."""

    @asynccontextmanager
    async def start(behave: Behaviour) -> AsyncIterator[FaultyEngine]:
        engine = FaultyEngine(behave)
        async with serve_on_loopback(engine.serve) as engine.url:
            yield engine

    return start


@pytest.fixture
def text() -> GenerateRequest:
    """A sound request without images."""
    return make_request(())


@pytest.fixture
def pictures() -> GenerateRequest:
    """A sound request with three images, two of which are the same."""
    return make_request((b"one", b"two", b"one"))


def make_request(images: tuple[bytes, ...]) -> GenerateRequest:
    lengths = [3 + len(data) + index for index, data in enumerate(dict.fromkeys(images))]
    length = dict(zip(dict.fromkeys(images), lengths, strict=True))
    prompt, expanded, refs, marks = [1], [1], [], []
    for number, data in enumerate(images):
        sha256 = hashlib.sha256(data).hexdigest()
        prompt += [2, PAD, 3 + number]
        marks.append(Placeholder(sha256[:32], len(expanded) + 1, length[data]))
        expanded += [2, *[PAD] * length[data], 3 + number]
        layout = {"image_grid_thw": [[1, 2, 2 * length[data]]]}
        refs.append(ImageRef(f"file:///runs/r/assets/images/{sha256}.png", sha256[:32], layout))
    return GenerateRequest(
        request_id="r-0",
        session_id="r",
        prompt=as_logical_ids(prompt),
        images=tuple(refs),
        expanded_prompt=ExpandedIds(np.array(expanded, np.int32)),
        known_token_count=0,
        placeholders=tuple(marks),
        pad_id=PAD,
        sampling={"temperature": 0.0, "max_tokens": 8},
        stop_token_ids=(7,),
    )
