"""The limits of a request to our engines: its bytes, and the seconds that it may take."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from rollout.serving import request_limits
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.serving.protocol import RequestRefused
from rollout.serving.request_limits import LimitBody


async def read_body(chunks: list[bytes], **limits: Any) -> bytes:
    """Return the body that an application reads from these chunks; nothing comes after the last one."""
    left, body = list(chunks), b""

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not chunks[-1]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal body
        while (message := await receive())["more_body"]:
            body += message["body"]
        body += message["body"]

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await LimitBody(app, **limits)({"type": "http"}, receive, send)
    return body


async def test_a_body_within_the_limits_is_read_unchanged() -> None:
    assert await read_body([b"12345", b"67890"], max_bytes=10) == b"1234567890"


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6] * 2, [b"x" * 10, b"x", b"x" * 1000]])
async def test_a_body_that_is_too_large_is_refused_with_its_size(chunks: list[bytes]) -> None:
    with pytest.raises(
        RequestRefused, match=r"has [\d,]+ bytes; this engine takes at most 10\. Send images"
    ) as refused:
        await read_body(chunks, max_bytes=10)
    assert refused.value.status == 413


async def test_an_incomplete_body_is_refused_at_its_deadline() -> None:
    with pytest.raises(RequestRefused, match="was not complete") as refused:
        await read_body([b"half", b""], timeout=0.01)
    assert refused.value.status == 408


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(request_limits, "HEAD_TIMEOUT", 0.2)
    monkeypatch.setattr(LimitBody.__init__, "__defaults__", (1000, 0.2))
    with EmbeddedServer(EmbeddedSettings()) as url:
        yield url


def talk(url: str, *sent: bytes) -> bytes:
    """Send these bytes, and read until the engine closes the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for part in sent:
            connection.sendall(part)
        answer = b""
        while received := connection.recv(4096):
            answer += received
    return answer


def test_a_client_with_a_large_body_gets_an_error_and_can_go_on(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        answer = client.post("/inference/v1/generate", content=bytes(3 << 20))
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "RequestTooLarge")
        assert client.post("/pause").status_code == 200


def test_a_slow_client_loses_its_connection(url: str) -> None:
    assert talk(url) == b""
    assert talk(url, b"POST /pause HTTP/1.1\r\nhost: x\r\n") == b""
    answer = talk(url, b"POST /collective_rpc HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"was not complete within 0.2 s" in answer


def test_a_slow_second_request_loses_its_connection_too(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /health HT")
        assert connection.recv(4096) == b""


def test_a_head_without_an_end_is_refused(url: str) -> None:
    answer = talk(url, b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
    assert answer.startswith(b"HTTP/1.1 400 ")
