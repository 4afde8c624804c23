"""The relay forwards a port to a unix socket while its command runs, and ends as the command does."""

import hashlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.programs.sandboxes import relay

PAYLOAD = os.urandom(1 << 20) * 8
PRELUDE = """
import hashlib, os, socket
def connect():
    return socket.create_connection(('127.0.0.1', {port}), 30)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def gateway(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server at a unix socket; each connection is answered in a thread of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            answer(self.request)

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 1024

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield
        server.shutdown()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def relay_command(*command: str, forward: tuple[str, str] | None = None) -> list[str]:
    options = () if forward is None else ("--forward", *forward)
    return [sys.executable, "-I", "-S", relay.__file__, *options, "--", *command]


def play(path: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program under the relay; `connect()` connects to its port."""
    port = free_port()
    command = relay_command(
        *(sys.executable, "-I", "-c", PRELUDE.format(port=port) + program), forward=(f"127.0.0.1:{port}", str(path))
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_an_answer_follows_a_large_request_whose_end_the_gateway_sees(path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(read_all(connection)).hexdigest().encode())

    with gateway(path, answer):
        end = play(
            path,
            "data = os.urandom(1 << 20) * 8\nc = connect(); c.sendall(data); c.shutdown(socket.SHUT_WR)\n"
            "print(c.recv(64, socket.MSG_WAITALL).decode() == hashlib.sha256(data).hexdigest(), c.recv(1))",
        )
    assert end.stdout == "True b''\n", end.stderr


def test_a_large_answer_arrives_after_the_gateway_has_closed(path: Path) -> None:
    with gateway(path, lambda connection: connection.sendall(PAYLOAD)):
        end = play(path, "print(hashlib.sha256(b''.join(iter(lambda c=connect(): c.recv(1 << 16), b''))).hexdigest())")
    assert end.stdout.strip() == hashlib.sha256(PAYLOAD).hexdigest(), end.stderr


def test_each_part_of_a_stream_arrives_before_the_next_one_is_sent(path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        for number in range(20):
            connection.sendall(b"%02d" % number)
            assert connection.recv(1) == b"+"  # the program has read this part

    with gateway(path, answer):
        end = play(path, "c = connect()\nfor _ in range(20): print(c.recv(2).decode()); c.sendall(b'+')")
    assert end.stdout.split() == [f"{number:02}" for number in range(20)], end.stderr


def test_two_hundred_connections_are_open_at_once(path: Path) -> None:
    everyone_is_here = threading.Barrier(200, timeout=60)

    def answer(connection: socket.socket) -> None:
        number = connection.recv(3, socket.MSG_WAITALL)
        everyone_is_here.wait()
        connection.sendall(number)

    with gateway(path, answer):
        end = play(
            path,
            "cs = [connect() for _ in range(200)]\nfor i, c in enumerate(cs): c.sendall(b'%03d' % i)\n"
            "print([int(c.recv(3, socket.MSG_WAITALL)) for c in cs] == list(range(200)))",
        )
    assert end.stdout == "True\n", end.stderr


def test_the_gateway_sees_that_a_program_has_closed_its_connection(path: Path) -> None:
    closed = threading.Event()

    def answer(connection: socket.socket) -> None:
        if connection.recv(1) == b"w":
            connection.sendall(b"1" if closed.wait(30) else b"0")
        elif connection.recv(1) == b"":
            closed.set()

    with gateway(path, answer):
        end = play(path, "a, b = connect(), connect(); a.sendall(b'c'); b.sendall(b'w'); a.close(); print(b.recv(1))")
    assert end.stdout == "b'1'\n", end.stderr


def test_a_connection_is_closed_if_there_is_no_gateway(path: Path) -> None:
    assert play(path, "print(connect().recv(1))").stdout == "b''\n"


@pytest.mark.parametrize("forwards", [True, False])
def test_the_exit_code_is_that_of_the_command(path: Path, forwards: bool) -> None:
    forward = (f"127.0.0.1:{free_port()}", str(path)) if forwards else None
    assert subprocess.run(relay_command("sh", "-c", "exit 3", forward=forward), timeout=30, check=False).returncode == 3


def test_the_command_has_no_terminal_of_the_user(path: Path) -> None:
    assert play(path, "print(os.getsid(0) == os.getpid())").stdout == "True\n"


def test_the_exit_code_names_the_signal_that_ended_the_command(path: Path) -> None:
    assert play(path, f"os.kill(os.getpid(), {signal.SIGKILL})").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize(
    ("name", "reason"), [("no-such-program", "No such file or directory"), ("not_executable", "Permission denied")]
)
def test_a_command_that_cannot_start_is_recognised(path: Path, name: str, reason: str, forwards: bool) -> None:
    (path.parent / "not_executable").write_text("")
    command = str(path.parent / name)
    forward = (f"127.0.0.1:{free_port()}", str(path)) if forwards else None
    end = subprocess.run(
        relay_command(command, forward=forward), capture_output=True, text=True, timeout=30, check=False
    )
    assert end.returncode == relay.START_FAILED_CODE
    assert end.stderr == f"{relay.START_FAILED}{command}: {reason}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("forwards", [True, False])
def test_a_signal_is_passed_to_the_command(path: Path, number: signal.Signals, forwards: bool) -> None:
    command = relay_command(
        *("sh", "-c", f"trap 'exit 7' {number.value}; echo ready; while :; do sleep 0.05; done"),
        forward=(f"127.0.0.1:{free_port()}", str(path)) if forwards else None,
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == 7
