"""A small HTTP server on the test's own event loop, for tests whose server misbehaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection."""


@dataclass(frozen=True)
class Request:
    """A request as the server received it.

    Attributes:
        method: its method.
        path: its path and query.
        headers: its headers, by their names in lower case.
        body: its body.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


async def read_requests(reader: asyncio.StreamReader) -> AsyncIterator[Request]:
    """Yield the requests of a connection until the client disconnects."""
    try:
        while line := await reader.readline():
            headers = {}
            while (header := await reader.readline()).strip():
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = line.decode().split()
            yield Request(method, path, headers, body)
    except (ConnectionError, asyncio.IncompleteReadError):
        return


@asynccontextmanager
async def serve_on_loopback(serve: Serve) -> AsyncIterator[str]:
    """Serve connections on a free port and yield the URL; close the connections at the end."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass  # the test is over, or the client disconnected before its answer
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=512)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
