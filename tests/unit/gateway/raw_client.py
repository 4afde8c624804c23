"""A client over one socket, which can hang up, be killed, and send pieces, as programs do when they break."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import anyio

from rollout.environments.endpoint import Endpoint

DialectName = Literal["chat", "responses", "messages"]
DIALECTS: tuple[DialectName, ...] = ("chat", "responses", "messages")
_PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
_TIMEOUT = 60.0
_connected: list["RawClient"] = []


@dataclass(frozen=True)
class Response:
    """A response as it came.

    Attributes:
        status: the status.
        headers: the headers, by their names in lower case.
        body: the body; of a stream, the bytes of all chunks.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def events(self) -> list[Any]:
        """The data of the events of a stream, without comments."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def without_comments(self) -> bytes:
        """The body of a stream without comments."""
        return b"\n\n".join(block for block in self.body.split(b"\n\n") if not block.startswith(b":"))


@dataclass(eq=False)
class RawClient:
    """One connection to an endpoint."""

    host: str
    port: int
    key: str
    _reader: asyncio.StreamReader | None = field(default=None, repr=False)
    _writer: asyncio.StreamWriter | None = field(default=None, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint, key: str | None = None) -> Self:
        """Return a client of an endpoint, which connects with its first request."""
        host, _, port = endpoint.anthropic_base_url.removeprefix("http://").rpartition(":")
        return cls(host, int(port), key or endpoint.key)

    async def ask(self, body: bytes, dialect: DialectName = "chat") -> Response:
        """Send a request, and return the response."""
        await self.send(body, dialect)
        return await self.read()

    async def send(self, body: bytes, dialect: DialectName = "chat") -> None:
        """Send a request."""
        await self.send_bytes(self.encode(body, dialect))

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        return self.host, self.port

    def encode(self, body: bytes, dialect: DialectName = "chat") -> bytes:
        """Return the bytes of a request."""
        head = (
            f"POST {_PATHS[dialect]} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def send_bytes(self, data: bytes, *, reads: bool = True) -> None:
        """Send bytes, over a new connection if there is none.

        Args:
            data: the bytes.
            reads: False: what comes stays with the system, so that the connection is reset when it is closed.
        """
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
            _connected.append(self)
        if not reads:
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> Response:
        """Read one response."""
        assert self._reader is not None
        with anyio.fail_after(_TIMEOUT):
            status, headers = await self.read_head()
            if headers.get("transfer-encoding") != "chunked":
                return Response(status, headers, await self._reader.readexactly(int(headers["content-length"])))
            body = b""
            while chunk := await self.read_chunk():
                body += chunk
            return Response(status, headers, body)

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Read the status and the headers of a response."""
        assert self._reader is not None
        with anyio.fail_after(_TIMEOUT):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(": ") for line in lines[1:] if line]
        return int(lines[0].split()[1]), {name.lower(): value for name, _, value in pairs}

    async def read_chunk(self) -> bytes:
        """Read one chunk of a stream; the last one is empty."""
        assert self._reader is not None
        with anyio.fail_after(_TIMEOUT):
            size = int(await self._reader.readline(), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    def kill(self) -> None:
        """Reset the connection, as the system does for a killed process that has not read everything."""
        if self._writer is not None:
            self._writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._writer.transport.abort()
        self._reader = self._writer = None

    def close(self) -> None:
        """Close the connection in the usual way."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def close_clients() -> None:
    """Close the connections of all clients."""
    for client in _connected:
        client.close()
    _connected.clear()


def body_of(
    text: str, dialect: DialectName = "chat", /, *, history: list[Any] | None = None, stream: bool = False, **more: Any
) -> bytes:
    """Return the body of a request that ends with a user's text."""
    messages = [*(history or ()), {"role": "user", "content": text}]
    request: dict[str, Any] = {"model": "policy", "stream": stream, **more}
    if dialect == "responses":
        request["input"] = messages
    else:
        request["messages"] = messages
    if dialect == "messages":
        request.setdefault("max_tokens", 100)
    return json.dumps(request).encode()


def echo_of(response: Response, dialect: DialectName = "chat") -> list[Any]:
    """Return the messages or items with which a client repeats the answer of a response that is no stream."""
    answer = response.data
    match dialect:
        case "chat":
            return [answer["choices"][0]["message"]]
        case "responses":
            return list(answer["output"])
        case "messages":
            return [{"role": "assistant", "content": answer["content"]}]


def text_of(response: Response, dialect: DialectName = "chat") -> str:
    """Return the text of an answer, streamed or not."""
    if response.is_stream:
        return _text_of_events(response.events, dialect)
    answer = response.data
    match dialect:
        case "chat":
            return str(answer["choices"][0]["message"]["content"])
        case "responses":
            return str(answer["output"][-1]["content"][0]["text"])
        case "messages":
            return str(answer["content"][-1]["text"])


def _text_of_events(events: list[Any], dialect: DialectName) -> str:
    match dialect:
        case "chat":
            choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
            return "".join(choice["delta"].get("content") or "" for choice in choices)
        case "responses":
            return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        case "messages":
            deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
            return "".join(delta.get("text", "") for delta in deltas)
