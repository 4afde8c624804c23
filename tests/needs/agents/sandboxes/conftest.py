"""A world around a sandbox: a workspace, a gateway, and things of the machine that a program must not reach."""

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

from rollout.programs.sandboxes.base import SandboxedCommand, WrappedCommand
from rollout.programs.sandboxes.registry import open_sandbox, parse_sandbox
from rollout.programs.workspace import ProgramDirectories, Workspace
from tests.procfs import MarkedProcesses


def _why_not() -> str | None:
    """Return why bubblewrap cannot be used on this machine, without code of ours; None if it can."""
    if shutil.which("bwrap") is None:
        return "the command bwrap is missing"
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    trial = subprocess.run(command, capture_output=True, text=True, check=False)
    return trial.stderr if trial.returncode != 0 else None


WHY_NOT = _why_not()
SECRET = "a-secret-of-the-worker"


@dataclass(frozen=True, slots=True)
class World:
    """A workspace with a gateway.

    Attributes:
        workspace: the directories of the program.
        processes: the processes that this world starts.
    """

    workspace: Workspace
    processes: MarkedProcesses = field(default_factory=MarkedProcesses)

    @property
    def inside(self) -> ProgramDirectories:
        """The directories as programs in bwrap see them."""
        return open_sandbox(parse_sandbox("bwrap")).directories(self.workspace)

    def wrap(
        self, kind: str, *argv: str, read: tuple[Path, ...] = (), gateway: bool = True, environ: Mapping[str, str] = {}
    ) -> WrappedCommand:
        """Wrap a command. Its environment is that of a program, and has no secret of the worker."""
        mark = self.processes.environment.items() - os.environ.items()
        sandbox = open_sandbox(parse_sandbox(kind))
        return sandbox.wrap(
            SandboxedCommand(
                argv=argv,
                environ={
                    "PATH": os.environ["PATH"],
                    **sandbox.directories(self.workspace).environ(),
                    **dict(mark),
                    **environ,
                },
                workspace=self.workspace,
                gateway_socket=self.workspace.gateway_socket if gateway else None,
                read=read,
            )
        )

    def run(
        self,
        kind: str,
        *argv: str,
        read: tuple[Path, ...] = (),
        gateway: bool = True,
        environ: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a sandbox."""
        wrapped = self.wrap(kind, *argv, read=read, gateway=gateway, environ=environ)
        return subprocess.run(
            wrapped.argv, env=wrapped.environ, cwd=self.workspace.work, capture_output=True, text=True, timeout=60
        )

    def play(self, kind: str, program: str, *arguments: object, gateway: bool = True) -> str:
        """Run a Python program in a sandbox, and return what it prints."""
        end = self.run(kind, sys.executable, "-c", program, *(str(argument) for argument in arguments), gateway=gateway)
        assert end.returncode == 0, end.stderr
        return end.stdout


class _Gateway(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"path": self.path, "bytes": len(body)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def world() -> Iterator[World]:
    workspace = Workspace.create()
    with ThreadingUnixStreamServer(str(workspace.gateway_socket), _Gateway) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield World(workspace)
        server.shutdown()
    workspace.remove()


@dataclass(frozen=True, slots=True)
class Machine:
    """Things outside of the sandbox.

    Attributes:
        addresses: the addresses of this machine; a TCP server listens at all of them.
        port: its port; a UDP server answers at the same port.
        abstract_name: the name of an abstract unix socket that accepts connections.
        socket: the path of a unix socket that accepts connections.
        secret_file: a file in the home of the worker.
        victim: the pid of a process of the same user, with SECRET in its environment; everybody may trace it.
    """

    addresses: tuple[str, ...]
    port: int
    abstract_name: str
    socket: Path
    secret_file: Path
    victim: int


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=64))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(tcp.getsockname())
        threading.Thread(target=_answer_datagrams, args=(udp,), daemon=True).start()
        abstract_name = f"rollout-{os.getpid()}-{tmp_path.name}"
        for address in (f"\0{abstract_name}", str(tmp_path / "socket")):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen(64)
        secret = stack.enter_context(tempfile.NamedTemporaryFile("w", dir=Path.home(), prefix=".rollout-test-"))
        secret.write(SECRET)
        secret.flush()
        victim = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", "import sys; sys.stdin.read()"],
                stdin=subprocess.PIPE,
                env={**os.environ, "WORKER_KEY": SECRET},
                preexec_fn=_let_everybody_trace,
            )
        )
        stack.callback(victim.kill)
        yield Machine(
            addresses=_addresses(),
            port=tcp.getsockname()[1],
            abstract_name=abstract_name,
            socket=tmp_path / "socket",
            secret_file=Path(secret.name),
            victim=victim.pid,
        )


def _answer_datagrams(server: socket.socket) -> None:
    try:
        while True:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)
    except OSError:  # it was closed
        return


def _let_everybody_trace() -> None:
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY


def _addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses of all interfaces."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(query, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:  # it has none
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return tuple(found)
