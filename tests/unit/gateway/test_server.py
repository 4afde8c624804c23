"""The HTTP server of the gateway: keys, paths, bodies, slow programs, and its sockets."""

import asyncio
import gzip
import json
import os
import resource
import socket
import stat
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from structlog.testing import capture_logs

from rollout import Environment, Model, Score, Task
from rollout.config.gateway import GatewayConfig
from rollout.gateway.endpoint import GatewayEndpoint
from rollout.gateway.server import Gateway, GatewayUnavailable
from rollout.gateway.timeouts import GatewayTimeouts
from rollout.metrics.worker import WorkerMetrics
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy, play
from rollout.worker import containment
from tests.open_endpoints import (
    PATHS,
    PICTURE_URL,
    QUESTION,
    TIMEOUT,
    OpenedEndpoint,
    error_problem,
    good_body,
    open_endpoint,
)

SMALL = GatewayConfig(max_body_bytes=64 << 10)
DIALECTS = tuple(PATHS)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[OpenedEndpoint]:
    async with embedded_policy(tmp_path, gateway=SMALL) as policy, open_endpoint(policy) as endpoint:
        yield endpoint


@asynccontextmanager
async def open_with_gateway(
    directory: Path, config: GatewayConfig = SMALL, **options: Any
) -> AsyncIterator[PolicyClient]:
    """Yield a policy whose gateway has other settings or time limits."""
    async with embedded_policy(directory) as policy:
        gateway = Gateway(config, model="tiny", metrics=WorkerMetrics(""), **options)
        async with gateway:
            yield replace(policy, open_endpoint=gateway.open_endpoint)


async def connect(opened: OpenedEndpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = opened.endpoint.base_url.removeprefix("http://").removesuffix("/v1").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Read the status and the JSON of one answer."""
    async with asyncio.timeout(TIMEOUT):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return int(lines[0].split()[1]), json.loads(await reader.readexactly(int(headers["content-length"])))


async def require_good(opened: OpenedEndpoint, dialect: str = "chat") -> None:
    answer = await opened.client.post(PATHS[dialect], json=good_body(dialect))
    assert answer.status_code == 200, answer.text


# Keys


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer KEY"},
        {"authorization": "bearer  KEY"},
        {"x-api-key": "KEY"},
        {"Authorization": "Bearer sk-of-the-program", "x-api-key": "KEY"},
        {"Authorization": "Bearer KEY", "x-api-key": "sk-of-the-program"},
        {"Authorization": "Bearer KEY", "x-session-id": "another", "session_id": "another", "x-request-id": "1"},
    ],
    ids=["bearer", "small letters", "x-api-key", "wrong bearer", "wrong x-api-key", "with session headers"],
)
async def test_a_key_is_taken_from_either_header(opened: OpenedEndpoint, dialect: str, headers: dict[str, str]) -> None:
    keyed = {name: value.replace("KEY", opened.endpoint.key) for name, value in headers.items()}
    async with httpx.AsyncClient(headers=keyed, timeout=TIMEOUT) as client:
        answer = await client.post(f"{opened.endpoint.anthropic_base_url}{PATHS[dialect]}", json=good_body(dialect))
    assert answer.status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_in_the_path_beats_one_in_a_header(opened: OpenedEndpoint, dialect: str) -> None:
    base = opened.endpoint.keyed_anthropic_base_url if dialect == "messages" else opened.endpoint.keyed_base_url
    url = base + (PATHS[dialect] if dialect == "messages" else PATHS[dialect].removeprefix("/v1"))
    async with httpx.AsyncClient(headers={"Authorization": "Bearer sk-another"}, timeout=TIMEOUT) as client:
        answer = await client.post(url, json=good_body(dialect))
    assert answer.status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-unknown"}, {"Authorization": "Basic a"}])
async def test_a_missing_or_unknown_key_is_401_in_the_dialect(
    opened: OpenedEndpoint, dialect: str, headers: dict[str, str]
) -> None:
    async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT) as client:
        answer = await client.post(f"{opened.endpoint.anthropic_base_url}{PATHS[dialect]}", json=good_body(dialect))
    assert answer.status_code == 401
    assert error_problem(dialect, answer.json()) is None
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_key_of_a_rollout_that_ended_is_400_in_the_dialect(tmp_path: Path, dialect: str) -> None:
    async with embedded_policy(tmp_path, gateway=SMALL) as policy:
        async with open_endpoint(policy) as first:
            pass
        async with open_endpoint(policy) as second:
            headers = {"Authorization": f"Bearer {first.endpoint.key}"}
            answer = await second.client.post(PATHS[dialect], json=good_body(dialect), headers=headers)
    assert answer.status_code == 400
    assert error_problem(dialect, answer.json()) is None
    assert "has ended" in answer.json()["error"]["message"]


# Paths


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_answers_without_a_key(opened: OpenedEndpoint, method: str) -> None:
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        answer = await client.request(method, f"{opened.endpoint.anthropic_base_url}/")
    assert answer.status_code == 200


async def test_the_models_say_how_long_a_conversation_can_be(opened: OpenedEndpoint) -> None:
    listed = (await opened.client.get("/v1/models")).json()
    assert [entry["id"] for entry in listed["data"]] == [opened.endpoint.model]
    assert listed["data"][0]["max_model_len"] == 32768
    one = (await opened.client.get("/v1/models/claude-opus")).json()
    assert (one["id"], one["max_model_len"]) == ("claude-opus", 32768)


async def test_a_query_after_the_path_is_ignored(opened: OpenedEndpoint) -> None:
    answer = await opened.client.post("/v1/messages?beta=true", json=good_body("messages"))
    assert answer.json()["type"] == "message"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("POST", "/chat/completions"), ("PUT", "/")],
)
async def test_another_path_or_method_is_refused_with_the_paths_that_exist(
    opened: OpenedEndpoint, method: str, path: str
) -> None:
    answer = await opened.client.request(method, path)
    assert answer.status_code == 404
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
    await require_good(opened)


async def test_a_doubled_v1_is_refused_with_its_cause(opened: OpenedEndpoint) -> None:
    answer = await opened.client.post(f"{opened.endpoint.base_url}/v1/chat/completions", json=good_body("chat"))
    assert answer.status_code == 404
    assert "OPENAI_BASE_URL already ends in /v1." in answer.json()["error"]["message"]


async def test_unknown_paths_of_a_right_key_are_logged_once_without_keys(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path, gateway=SMALL) as policy:
        with capture_logs() as logs:
            async with open_endpoint(policy) as opened:
                keyed = f"{opened.endpoint.keyed_base_url}/{opened.endpoint.key}"
                for _ in range(2):
                    assert (await opened.client.post(keyed)).status_code == 404
                unknown = {"Authorization": "Bearer sk-unknown"}
                assert (await opened.client.get("/v2", headers=unknown)).status_code == 404
    warnings = [line for line in logs if line["event"] == "the program asks for an unknown path of the gateway"]
    assert [(line["method"], line["path"]) for line in warnings] == [("POST", "/v1/a-key-of-the-gateway")]


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
async def test_counted_tokens_are_those_of_the_turn_and_are_not_recorded(tmp_path: Path, with_image: bool) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE_URL.partition(",")[2]}
    content = [{"type": "text", "text": "Look."}, *([{"type": "image", "source": source}] if with_image else [])]
    tools = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}]
    body = good_body("messages", messages=[{"role": "user", "content": content}], system="Be brief.", tools=tools)
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        counted = await opened.client.post("/v1/messages/count_tokens", json=body)
        assert not opened.endpoint.transcript.turns
        turn = await opened.client.post("/v1/messages", json=body)
        again = await opened.client.post("/v1/messages/count_tokens", json=body)
    assert turn.status_code == 200, turn.text
    assert counted.json() == again.json() == {"input_tokens": turn.json()["usage"]["input_tokens"]}
    assert opened.played is not None
    assert len(opened.played.trajectory.steps) == 1


async def test_the_tokens_of_a_conversation_that_ends_with_an_answer_are_counted(opened: OpenedEndpoint) -> None:
    question = good_body("messages", messages=[QUESTION])
    answered = good_body("messages", messages=[QUESTION, {"role": "assistant", "content": "Yes."}])
    counts = [await opened.client.post("/v1/messages/count_tokens", json=body) for body in (question, answered)]
    first, second = (answer.json()["input_tokens"] for answer in counts)
    assert 0 < first < second


async def test_a_request_to_count_tokens_is_refused_with_its_place(opened: OpenedEndpoint) -> None:
    body = good_body("messages", messages=[QUESTION, {"role": "user", "content": [{"type": "document"}]}])
    answer = await opened.client.post("/v1/messages/count_tokens", json=body)
    assert answer.status_code == 400
    assert "messages[1].content[0]" in answer.json()["error"]["message"]


# Bodies


async def test_a_client_that_asks_first_may_send_its_body(opened: OpenedEndpoint) -> None:
    body = json.dumps(good_body("chat", user="x" * 50_000)).encode()
    reader, writer = await connect(opened)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nx-api-key: {opened.endpoint.key}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    async with asyncio.timeout(TIMEOUT):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    status, _ = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    assert status == 200


async def test_a_client_that_asks_first_is_refused_before_its_body(opened: OpenedEndpoint) -> None:
    reader, writer = await connect(opened)
    writer.write(
        f"POST /v1/responses HTTP/1.1\r\nHost: a\r\nx-api-key: {opened.endpoint.key}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    )
    status, answer = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    assert (status, error_problem("responses", answer)) == (413, None)


async def test_a_body_may_come_in_chunks(opened: OpenedEndpoint) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps(good_body("chat")).encode():
            yield bytes([byte])

    answer = await opened.client.post("/v1/chat/completions", content=chunks())
    assert answer.status_code == 200


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_read(
    opened: OpenedEndpoint, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    content = compress(json.dumps(good_body("chat")).encode())
    answer = await opened.client.post("/v1/chat/completions", content=content, headers={"Content-Encoding": encoding})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "content", "text"),
    [
        ("gzip", b"no gzip", "bytes are damaged"),
        ("gzip", gzip.compress(b"{}" * 50, mtime=0)[:-5], "ends before the end"),
        ("gzip", b"", "ends before the end"),
        ("br", b"{}", "send it without compression"),
    ],
)
async def test_a_body_that_cannot_be_decompressed_is_refused(
    opened: OpenedEndpoint, encoding: str, content: bytes, text: str
) -> None:
    answer = await opened.client.post("/v1/messages", content=content, headers={"Content-Encoding": encoding})
    assert (answer.status_code, error_problem("messages", answer.json())) == (400, None)
    assert text in answer.json()["error"]["message"]
    await require_good(opened)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_small_body_that_becomes_huge_is_refused_at_the_limit(opened: OpenedEndpoint, dialect: str) -> None:
    bomb = gzip.compress(bytes(500 << 20), compresslevel=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await opened.client.post(PATHS[dialect], content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, error_problem(dialect, answer.json())) == (413, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 << 10  # in KiB
    await require_good(opened, dialect)


async def _in_chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 16 << 10):
        yield data[at : at + (16 << 10)]


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_body_over_the_limit_is_413_in_the_dialect_and_the_next_request_works(
    opened: OpenedEndpoint, dialect: str, chunked: bool
) -> None:
    data = json.dumps(good_body(dialect, padding="x" * (1 << 20))).encode()
    answer = await opened.client.post(PATHS[dialect], content=_in_chunks(data) if chunked else data)
    assert (answer.status_code, error_problem(dialect, answer.json())) == (413, None)
    assert "gateway.max_body_bytes" in answer.json()["error"]["message"]
    await require_good(opened, dialect)


async def test_a_request_that_is_no_http_is_refused_without_repeating_it(opened: OpenedEndpoint) -> None:
    reader, writer = await connect(opened)
    writer.write(f"GET /key/{opened.endpoint.key}/v1 HTTP/banana\r\n\r\n".encode())
    status, answer = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    assert (status, error_problem("chat", answer)) == (400, None)
    assert opened.endpoint.key not in json.dumps(answer)
    await require_good(opened)


# Slow programs


async def test_a_head_that_comes_byte_by_byte_is_answered(opened: OpenedEndpoint) -> None:
    body = json.dumps(good_body("chat")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nx-api-key: {opened.endpoint.key}\r\n"
    reader, writer = await connect(opened)
    for byte in f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body:
        writer.write(bytes([byte]))
        await writer.drain()
    status, _ = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    assert status == 200


async def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    timeouts = GatewayTimeouts(first_request=0.2)
    async with open_with_gateway(tmp_path, timeouts=timeouts) as policy, open_endpoint(policy) as opened:
        reader, writer = await connect(opened)
        writer.write(b"POST /v1/chat/comp")
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await require_good(opened)


async def test_a_connection_that_waits_too_long_for_its_next_request_is_closed(tmp_path: Path) -> None:
    timeouts = GatewayTimeouts(keepalive=0.2)
    async with open_with_gateway(tmp_path, timeouts=timeouts) as policy, open_endpoint(policy) as opened:
        reader, writer = await connect(opened)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await read_answer(reader)
        writer.write(b"GET / HT")
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_does_not_arrive_in_time_is_refused_in_the_dialect(tmp_path: Path) -> None:
    timeouts = GatewayTimeouts(body=0.2)
    async with open_with_gateway(tmp_path, timeouts=timeouts) as policy, open_endpoint(policy) as opened:
        reader, writer = await connect(opened)
        head = f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {opened.endpoint.key}\r\n"
        writer.write(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        status, answer = await read_answer(reader)
        writer.close()
        await writer.wait_closed()
        await require_good(opened)
    assert (status, error_problem("messages", answer)) == (400, None)
    assert "did not arrive within 0.2 s" in answer["error"]["message"]


async def test_idle_connections_do_not_keep_others_from_being_answered(opened: OpenedEndpoint) -> None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = [await connect(opened) for _ in range(min(2000, allowed // 4))]
    await require_good(opened)
    for _, writer in idle:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in idle))


async def test_a_client_that_hangs_up_in_its_body_harms_nobody(opened: OpenedEndpoint) -> None:
    for _ in range(20):
        _, writer = await connect(opened)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nx-api-key: {opened.endpoint.key}\r\n"
        writer.write(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        await writer.drain()
        writer.transport.abort()
    await require_good(opened)


# Sockets


async def test_the_server_listens_only_from_the_first_endpoint_to_the_end(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path) as policy:
        path = tmp_path / "gateway.sock"
        tasks = asyncio.all_tasks()
        async with Gateway(GatewayConfig(unix_socket=path), model="tiny", metrics=WorkerMetrics("")) as gateway:
            assert not path.exists()
            served = replace(policy, open_endpoint=gateway.open_endpoint)
            async with open_endpoint(served) as opened:
                await require_good(opened)
                idle = await connect(opened)
            assert path.exists()
        assert not path.exists()
        with pytest.raises(ConnectionRefusedError):
            await connect(opened)
        idle[1].close()
        await idle[1].wait_closed()
        assert asyncio.all_tasks() == tasks


async def _post_at_socket(path: Path, opened: OpenedEndpoint) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    headers = {"x-api-key": opened.endpoint.key}
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers=headers, timeout=TIMEOUT) as client:
        return await client.post("/v1/chat/completions", json=good_body("chat"))


async def test_a_unix_socket_is_for_the_user_of_the_worker_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gateway.sock"
    async with open_with_gateway(tmp_path, GatewayConfig(unix_socket=path)) as policy, open_endpoint(policy) as opened:
        assert opened.endpoint.unix_socket == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await _post_at_socket(path, opened)).status_code == 200


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_with_gateway(tmp_path, GatewayConfig(unix_socket=path)) as policy, open_endpoint(policy) as opened:
        assert (await _post_at_socket(path, opened)).status_code == 200


async def _require_unavailable(policy: PolicyClient, text: str) -> None:
    async def run(_: Environment, task: Task, model: Model) -> Score:
        async with model.endpoint():
            return Score(1.0)

    with pytest.raises(GatewayUnavailable) as raised:
        await play(type("Opening", (Environment,), {"run": run}), policy=policy)
    assert text in str(raised.value)


async def test_the_socket_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    config = GatewayConfig(unix_socket=path)
    async with open_with_gateway(tmp_path, config) as first, open_endpoint(first) as opened:
        async with open_with_gateway(tmp_path, config) as second:
            await _require_unavailable(second, f"and {path} (Address already in use)")
        assert (await _post_at_socket(path, opened)).status_code == 200


async def test_a_file_at_the_path_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    async with open_with_gateway(tmp_path, GatewayConfig(unix_socket=path)) as policy:
        await _require_unavailable(policy, "gateway.unix_socket")
    assert path.read_text() == "mine"


async def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with open_with_gateway(tmp_path, GatewayConfig(port=port)) as policy:
            await _require_unavailable(policy, f"cannot listen at 127.0.0.1:{port} (")


async def test_programs_get_the_advertised_address(tmp_path: Path) -> None:
    config = GatewayConfig(host="0.0.0.0", advertise="localhost")
    async with open_with_gateway(tmp_path, config) as policy, open_endpoint(policy) as opened:
        assert opened.endpoint.base_url.startswith("http://localhost:")
        assert opened.endpoint.environ["NO_PROXY"] == "localhost"
        await require_good(opened)


async def test_two_workers_of_a_launch_listen_beside_each_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    written = GatewayConfig(port=port, unix_socket=tmp_path / "gateway.sock")
    async with (
        open_with_gateway(tmp_path, written.for_launched_worker(os.getpid())) as first,
        open_with_gateway(tmp_path, written.for_launched_worker(os.getpid() + 1)) as second,
        open_endpoint(first) as one,
        open_endpoint(second) as other,
    ):
        await require_good(one)
        await require_good(other)
        answer = await other.client.post(
            PATHS["chat"], json=good_body("chat"), headers={"Authorization": f"Bearer {one.endpoint.key}"}
        )
    assert answer.status_code == 401


class _ContextGateway(Gateway):
    """Notes the attempt in whose context each request arrives."""

    attempts: ClassVar[list[object]] = []

    def find_endpoint(self, keys: Sequence[str]) -> GatewayEndpoint:
        self.attempts.append(containment._attempt_context.get())
        return super().find_endpoint(keys)


async def test_connections_do_not_run_in_the_context_of_the_rollout_that_started_the_server(tmp_path: Path) -> None:
    async with embedded_policy(tmp_path) as policy:
        async with _ContextGateway(SMALL, model="tiny", metrics=WorkerMetrics("")) as gateway:
            async with open_endpoint(replace(policy, open_endpoint=gateway.open_endpoint)) as opened:
                await require_good(opened)
    assert gateway.attempts == [None]
