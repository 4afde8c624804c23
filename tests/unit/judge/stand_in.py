"""A small judge that answers as told, on the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

Behaviour = Callable[[dict[str, Any]], Awaitable[bytes | None]]
"""Takes a question and returns a whole HTTP response. None closes the connection without one; the header
`connection: close` closes it afterwards."""


@dataclass(eq=False)
class StandInJudge:
    """What a judge was asked, and how it behaves.

    Attributes:
        behave: what it answers.
        url: its base URL.
        questions: the bodies of all requests.
        targets: the method and the path of all requests.
        headers: the headers of all requests.
        busy: how many requests it has now.
        most_busy: how many requests it had at the same time.
        arrived: is set by every request.
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
        try:
            while line := await reader.readline():
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.targets.append(line.decode().rpartition(" ")[0])
                self.headers.append(headers)
                self.questions.append(orjson.loads(body))
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
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, which tests do on purpose
        finally:
            writer.close()


@asynccontextmanager
async def serve_judge(behave: Behaviour) -> AsyncIterator[StandInJudge]:
    judge = StandInJudge(behave)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await judge.serve(reader, writer)
        except asyncio.CancelledError:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=512)
    judge.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield judge
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
    """Answers these one after the other."""
    left = list(responses)

    async def behave(_: dict[str, Any]) -> bytes | None:
        return left.pop(0)

    return behave


async def repeat_question(body: dict[str, Any]) -> bytes:
    """Answers with the text of the last message."""
    return verdict(body["messages"][-1]["content"])


async def hang(_: dict[str, Any]) -> bytes:
    """Never answers."""
    await asyncio.sleep(3600)
    raise AssertionError("a test waited for an hour")
