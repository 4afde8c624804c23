"""`rollout doctor` asks queues at ports where nobody listens, another program answers, or nobody ever answers."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.doctor.queues import check_other_queue, check_trajectories_queue
from rollout.doctor.results import CheckStatus
from tests.unit.cli.in_process import run_cli, set_options
from transports import QueueStorageError


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def with_queue(config: Path, url: str, key: str = "url") -> Config:
    return load_config(config, [f"queue.{key}={url}"])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port at which nobody listens, and which no other process gets during the test."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.doctor.queues._ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr("transports.redis_streams.server._FIRST_ANSWER_SECONDS", 0.0)


# redis://


@pytest.mark.usefixtures("impatient")
def test_a_redis_that_is_not_there_is_an_error_without_its_password(
    config: Path, tmp_path: Path, dead_port: int
) -> None:
    loaded = with_queue(config, f"redis://me:hidden@127.0.0.1:{dead_port}/0")
    with pytest.raises(QueueStorageError) as error:
        check_trajectories_queue(loaded, tmp_path)
    assert str(error.value) == (
        f"queue.url: redis://me:***@127.0.0.1:{dead_port}/0: no server listens at this address (connection refused). "
        "Start the Redis server, or correct this URL."
    )


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("scheme", ["redis", "rediss", "zmq"])
@pytest.mark.parametrize("key", ["tasks", "control"])
def test_a_server_that_accepts_and_never_answers_is_an_error_after_a_deadline(
    config: Path, tmp_path: Path, silent_port: int, scheme: str, key: str
) -> None:
    loaded = with_queue(config, f"{scheme}://127.0.0.1:{silent_port}", key)
    with pytest.raises(
        QueueStorageError, match=rf"^queue\.{key}: {scheme}://.*: no answer within 0\.2 s\. Check the host"
    ):
        check_other_queue(loaded, "tasks" if key == "tasks" else "control", tmp_path)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_launch_with_a_dead_queue_creates_no_run(config: Path, tmp_path: Path, dead_port: int, workers: str) -> None:
    settings = set_options(f"queue.url=redis://127.0.0.1:{dead_port}", f"run.directory={tmp_path}/runs")
    result = run_cli("launch", str(config), "--workers", workers, *settings)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"rollout: queue.url: redis://127.0.0.1:{dead_port}: no server listens at this address (connection refused). "
        "Start the Redis server, or correct this URL.\n"
    )
    assert list(tmp_path.iterdir()) == []


# zmq://


@pytest.fixture
def greeting_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that sends these bytes to the first one who connects."""

    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(request.param)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        yield int(server.getsockname()[1])
        thread.join()


@pytest.mark.parametrize("greeting_port", [b"\xff\0\0\0\0\0\0\0\x01\x7f"], indirect=True)
def test_a_zmq_queue_that_a_process_serves_is_ok(config: Path, tmp_path: Path, greeting_port: int) -> None:
    result = check_trajectories_queue(with_queue(config, f"zmq://127.0.0.1:{greeting_port}"), tmp_path)
    assert result.status is CheckStatus.OK
    assert "a process serves it" in result.message


@pytest.mark.parametrize("greeting_port", [b"SSH-2.0"], indirect=True)
def test_another_program_at_the_port_of_a_zmq_queue_is_an_error(
    config: Path, tmp_path: Path, greeting_port: int
) -> None:
    with pytest.raises(QueueStorageError, match="another program uses this port"):
        check_trajectories_queue(with_queue(config, f"zmq://127.0.0.1:{greeting_port}"), tmp_path)


def test_a_zmq_queue_that_this_machine_can_serve_is_ok(config: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = check_trajectories_queue(with_queue(config, f"zmq://127.0.0.1:{port}"), tmp_path)
    assert result.status is CheckStatus.OK
    assert "no process serves it yet; a process of this machine can serve it" in result.message


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("zmq://127.0.0.1:{port}?serve=false", "with serve=false another process must"),
        ("zmq://192.0.2.1:{port}", "192.0.2.1 is another machine"),
    ],
)
def test_a_zmq_queue_that_only_another_process_can_serve_is_unknown(
    config: Path, tmp_path: Path, dead_port: int, monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    async def refuse(host: str, port: int) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncio.open_connection", refuse)
    result = check_trajectories_queue(with_queue(config, address.format(port=dead_port)), tmp_path)
    assert result.status is CheckStatus.UNKNOWN
    assert reason in result.message
