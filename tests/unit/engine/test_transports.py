"""How every HTTP transport handles servers that answer correctly, wrongly, or not at all."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pytest
from aiohttp.http_parser import HttpResponseParser, HttpResponseParserPy

from rollout.engine.aiohttp_transport import AiohttpTransport
from rollout.engine.errors import EngineRefused, EngineUnreachable
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.transport import EngineTransport
from tests.loopback_http import serve_on_loopback
from tests.unit.engine.faulty import Answer, Behaviour, serving

PATH = "/inference/v1/generate"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"
LONG_HEADER = b"HTTP/1.1 200 OK\r\nx: " + b"x" * 10_000 + b"\r\n\r\n"
NOT_HTTP = [
    b"-ERR unknown command\r\n\r\n",
    b"",
    CUT,
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n?\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n{}\n",
    b"HTTP/1.1 \xff\xfe OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\xff\xfe\r\n",
]


@pytest.fixture(params=[AiohttpTransport, HttpxTransport])
async def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineTransport]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # if it were used, no test would reach its server
    async with request.param("s3cret") as made:
        yield made


def answering(answer: Answer) -> Behaviour:
    async def behave(_: dict[str, Any]) -> Answer:
        return answer

    return behave


async def test_a_request_arrives_with_the_key_and_the_session(transport: EngineTransport) -> None:
    async with serving(answering((200, b"done"))) as engine:
        assert await transport.post(f"{engine.url}{PATH}", b"{}", session_id="r") == b"done"
        assert await transport.get(f"{engine.url}/v1/models") == engine.models[1]
    first, second = engine.headers
    assert (first["authorization"], first["content-type"]) == ("Bearer s3cret", "application/json")
    assert (first["x-session-id"], second.get("x-session-id")) == ("r", None)
    assert engine.connections == 1
    assert "s3cret" not in f"{transport!r} {transport.__dict__!r}"


async def test_a_body_of_megabytes_arrives_whole(transport: EngineTransport) -> None:
    body = orjson.dumps({"image": "x" * 4_000_000})
    async with serving(answering((200, b"done"))) as engine:
        await transport.post(f"{engine.url}{PATH}", body)
    assert engine.generated == [orjson.loads(body)]
    assert "transfer-encoding" not in engine.headers[0]


@pytest.mark.parametrize("raw", NOT_HTTP)
async def test_an_answer_that_is_not_http_or_breaks_off_is_an_error(transport: EngineTransport, raw: bytes) -> None:
    async with serving(answering(raw)) as engine:
        with pytest.raises(EngineUnreachable, match=f"no answer from the engine at {engine.url}") as failed:
            await transport.post(f"{engine.url}{PATH}", b"{}")
    # A record or a log can hold the error, whatever bytes came.
    str(failed.value).encode()


@pytest.mark.parametrize("raw", [*NOT_HTTP, LONG_HEADER])
@pytest.mark.parametrize("parser", [HttpResponseParser, HttpResponseParserPy], ids=["compiled", "python"])
async def test_both_parsers_of_aiohttp_refuse_an_answer_that_is_not_http(
    raw: bytes, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without its compiled extension, aiohttp uses a parser in Python that raises other errors.
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", parser)
    async with serving(answering(raw)) as engine, AiohttpTransport() as transport:
        with pytest.raises(EngineUnreachable) as failed:
            await transport.post(f"{engine.url}{PATH}", b"{}")
    str(failed.value).encode()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://127.0.0.1:99999", f"http://{'a' * 64}.example", "http://\udc80"]
)
async def test_the_error_of_an_unreachable_engine_says_what_to_check(transport: EngineTransport, url: str) -> None:
    with pytest.raises(EngineUnreachable, match="Is the engine running"):
        await transport.get(f"{url}/v1/models")


async def test_a_redirect_is_refused(transport: EngineTransport) -> None:
    redirect = b"HTTP/1.1 307 -\r\nlocation: /v1/models\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(redirect)) as engine:
        with pytest.raises(EngineRefused, match="answered with status 307"):
            await transport.post(f"{engine.url}{PATH}", b"{}")
    assert engine.paths == [PATH]


async def test_no_cookie_is_kept(transport: EngineTransport) -> None:
    answer = b"HTTP/1.1 200 -\r\nconnection: close\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(answer)) as engine:
        for _ in range(2):
            await transport.post(f"{engine.url}{PATH}", b"{}")
    assert [headers.get("cookie") for headers in engine.headers] == [None, None]


async def test_cancellation_within_an_answer_closes_its_connection(transport: EngineTransport) -> None:
    request_received, disconnected = asyncio.Event(), asyncio.Event()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CUT)
        await writer.drain()
        while await reader.read(65536):
            request_received.set()
        disconnected.set()

    async with serve_on_loopback(begin) as url:
        async with anyio.create_task_group() as group:
            group.start_soon(transport.post, url, b"{}")
            await request_received.wait()
            group.cancel_scope.cancel()
        with anyio.fail_after(20):
            await disconnected.wait()


async def test_many_requests_are_in_flight_at_once(transport: EngineTransport) -> None:
    all_arrived = asyncio.Event()

    async def answer_once_all_arrived(_: dict[str, Any]) -> Answer:
        if len(engine.generated) == 150:
            all_arrived.set()
        await all_arrived.wait()
        return 200, b""

    async with serving(answer_once_all_arrived) as engine, asyncio.TaskGroup() as group:
        for _ in range(150):
            group.create_task(transport.post(f"{engine.url}{PATH}", b"{}"))
    assert engine.connections == 150
