"""The unix socket of one endpoint: who is accepted there, and what is left of it at the end."""

import asyncio
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.config.gateway import GatewayConfig
from rollout.environments.endpoint import EndpointSocket
from rollout.gateway.server import Gateway, GatewayUnavailable
from rollout.gateway.timeouts import GatewayTimeouts
from rollout.metrics.worker import WorkerMetrics
from rollout.session.policy import PolicyClient
from rollout.testing import embedded_policy, play
from tests.open_endpoints import PATHS, TIMEOUT, good_body, open_endpoint

ADDRESS = "127.0.0.1:4321"


@pytest.fixture
async def policy(tmp_path: Path) -> AsyncIterator[PolicyClient]:
    async with embedded_policy(tmp_path) as opened:
        yield opened


@pytest.fixture
def socket(short_directory: Path) -> EndpointSocket:
    return EndpointSocket(short_directory / "socket", ADDRESS)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="socket-"))
    yield directory
    shutil.rmtree(directory)


class Program(Environment):
    """Opens an endpoint with a socket, and ends as the test wants."""

    def __init__(self, socket: EndpointSocket, *, error: Exception | None = None, waits: bool = False) -> None:
        super().__init__(EnvironmentSettings())
        self.socket = socket
        self.error = error
        self.waits = waits
        self.existed = False

    async def run(self, task: Task, model: Model) -> Score:
        async with model.endpoint(socket=self.socket):
            self.existed = self.socket.path.is_socket()
            if self.error is not None:
                raise self.error
            if self.waits:
                await asyncio.sleep(3600)
        return Score(1.0)


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_program_plays_through_the_socket(policy: PolicyClient, socket: EndpointSocket, dialect: str) -> None:
    async with open_endpoint(policy, socket=socket) as opened:
        answer = await opened.client.post(PATHS[dialect], json=good_body(dialect))
    assert answer.status_code == 200, answer.text
    assert opened.played is not None
    assert len(opened.played.trajectory.steps) == 1


async def test_the_addresses_of_the_endpoint_are_those_beside_the_program(
    policy: PolicyClient, socket: EndpointSocket
) -> None:
    async with open_endpoint(policy, socket=socket) as opened:
        endpoint = opened.endpoint
        assert endpoint.base_url == f"http://{ADDRESS}/v1"
        assert endpoint.environ["ANTHROPIC_BASE_URL"] == endpoint.anthropic_base_url == f"http://{ADDRESS}"
        assert endpoint.keyed_base_url == f"http://{ADDRESS}/key/{endpoint.key}/v1"
        assert endpoint.environ["NO_PROXY"] == "127.0.0.1"
        assert endpoint.unix_socket == socket.path


async def test_only_the_user_of_the_worker_can_connect(policy: PolicyClient, socket: EndpointSocket) -> None:
    async with open_endpoint(policy, socket=socket):
        assert stat.S_IMODE(socket.path.stat().st_mode) == 0o600


async def test_the_key_of_another_rollout_is_401_at_the_socket(policy: PolicyClient, socket: EndpointSocket) -> None:
    async with open_endpoint(policy) as other, open_endpoint(policy, socket=socket) as opened:
        headers = {"Authorization": f"Bearer {other.endpoint.key}"}
        refused = await opened.client.post(PATHS["chat"], json=good_body("chat"), headers=headers)
        at_its_own = await other.client.post(PATHS["chat"], json=good_body("chat"))
        in_the_path = await opened.client.post(
            f"/key/{other.endpoint.key}{PATHS['chat']}", json=good_body("chat"), headers={}
        )
    assert (refused.status_code, in_the_path.status_code, at_its_own.status_code) == (401, 401, 200)


async def test_a_request_without_a_key_is_401_at_the_socket(policy: PolicyClient, socket: EndpointSocket) -> None:
    async with open_endpoint(policy, socket=socket):
        transport = httpx.AsyncHTTPTransport(uds=str(socket.path))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=TIMEOUT) as client:
            answer = await client.post(PATHS["chat"], json=good_body("chat"))
    assert answer.status_code == 401
    assert "has no key" in answer.json()["error"]["message"]


@pytest.mark.parametrize("error", [None, ValueError("broken")], ids=["in order", "with an error"])
async def test_the_file_is_gone_when_the_endpoint_is_closed(
    policy: PolicyClient, socket: EndpointSocket, error: Exception | None
) -> None:
    program = Program(socket, error=error)
    await play(program, policy=policy)
    assert program.existed
    assert list(socket.path.parent.iterdir()) == []


async def test_the_file_is_gone_after_a_rollout_that_took_too_long(
    policy: PolicyClient, socket: EndpointSocket
) -> None:
    program = Program(socket, waits=True)
    await play(program, policy=policy, timeout=0.5)
    assert program.existed
    assert list(socket.path.parent.iterdir()) == []


@pytest.mark.parametrize("is_used", [False, True], ids=["just opened", "after a request"])
async def test_a_connection_ends_with_its_endpoint(policy: PolicyClient, socket: EndpointSocket, is_used: bool) -> None:
    patient = GatewayTimeouts(first_request=3600, keepalive=3600)
    async with Gateway(GatewayConfig(), model="tiny", metrics=WorkerMetrics(""), timeouts=patient) as gateway:
        async with open_endpoint(replace(policy, open_endpoint=gateway.open_endpoint), socket=socket):
            reader, writer = await asyncio.open_unix_connection(socket.path)
            if is_used:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(b'{"status":"ok"}'))
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()


async def test_endpoints_after_one_another_may_use_the_same_path(policy: PolicyClient, socket: EndpointSocket) -> None:
    for _ in range(2):
        async with open_endpoint(policy, socket=socket) as opened:
            answer = await opened.client.post(PATHS["chat"], json=good_body("chat"))
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("place", "problem"),
    [("missing/socket", "its directory does not exist"), ("x" * 120, "use a shorter one"), ("file", "in use")],
)
async def test_a_socket_that_cannot_be_made_is_named_with_the_reason(
    policy: PolicyClient, short_directory: Path, place: str, problem: str
) -> None:
    (short_directory / "file").touch()
    path = short_directory / place
    with pytest.raises(GatewayUnavailable) as raised:
        await play(Program(EndpointSocket(path, ADDRESS)), policy=policy)
    assert str(path) in str(raised.value)
    assert problem in str(raised.value)
