"""A small judge whose answers a test chooses, on the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.loopback_http import read_requests, serve_on_loopback

Behaviour = Callable[[dict[str, Any]], Awaitable[bytes | None]]
"""Takes a question and returns a whole HTTP response. None closes the connection without one; the header
`connection: close` closes it afterwards."""


@dataclass(eq=False)
class StandInJudge:
    """A judge that records its requests, and answers them as `behave` says.

    Attributes:
        behave: what it answers.
        url: its base URL.
        questions: the bodies of all requests.
        targets: the method and the path of all requests.
        headers: the headers of all requests.
        busy: how many requests it has now.
        most_busy: how many requests it had at the same time.
        arrived: set by every request.
    """

    behave: Behaviour
    url: str = ""
    questions: list[dict[str, Any]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for request in read_requests(reader):
            self.targets.append(f"{request.method} {request.path}")
            self.headers.append(request.headers)
            self.questions.append(orjson.loads(request.body))
            self.arrived.set()
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            try:
                response = await self.behave(self.questions[-1])
            finally:
                self.busy -= 1
            if response is None:
                break
            writer.write(response)
            await writer.drain()
            if b"connection: close\r\n" in response:
                break


@asynccontextmanager
async def serve_judge(behave: Behaviour) -> AsyncIterator[StandInJudge]:
    judge = StandInJudge(behave)
    async with serve_on_loopback(judge.serve) as url:
        judge.url = f"{url}/v1"
        yield judge


def respond(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n{''.join(lines)}\r\n".encode() + body


def verdict(text: str | None, finish_reason: str | None = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return respond(200, orjson.dumps({"choices": [choice]}))


def always(response: bytes | None) -> Behaviour:
    async def behave(_: dict[str, Any]) -> bytes | None:
        return response

    return behave


def in_turn(*responses: bytes | None) -> Behaviour:
    """Answer with these, one after another."""
    left = list(responses)

    async def behave(_: dict[str, Any]) -> bytes | None:
        return left.pop(0)

    return behave


def wait_for(release: asyncio.Event) -> Behaviour:
    """Answer "yes" when the event is set."""

    async def behave(_: dict[str, Any]) -> bytes:
        await release.wait()
        return verdict("yes")

    return behave


async def repeat_question(body: dict[str, Any]) -> bytes:
    """Answer with the text of the last message."""
    return verdict(body["messages"][-1]["content"])


async def hang(_: dict[str, Any]) -> bytes:
    """Never answer."""
    await asyncio.sleep(3600)
    raise AssertionError("a test waited for an hour")
