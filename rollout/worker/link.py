"""The link between a worker and its supervisor. They exchange JSON lines over a socket pair.

Each line contains the fields of one dataclass. The worker uses a thread for the link, so it sends heartbeats even if
its event loop is blocked. If the link breaks, the supervisor is dead. The worker then kills itself at once, and all
processes that it started.
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import orjson

from rollout.texts import dump_json

_HEARTBEAT_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of a worker. The worker sends it twice a second.

    Attributes:
        ready: whether the worker takes orders; False while the worker starts.
        in_flight: the number of rollouts that the worker plays now.
        finished: the number of rollouts that have ended in this worker.
        lease_holder: the name under which the worker holds leases on the tasks queue; empty while the worker starts.
    """

    ready: bool = False
    in_flight: int = 0
    finished: int = 0
    lease_holder: str = ""


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """The last message of a worker that ends because of an error.

    Attributes:
        reason: the text of the error.
        is_configuration: whether the configuration or the machine must be changed, so that a restart alone cannot help.
    """

    reason: str
    is_configuration: bool = False


@dataclass(frozen=True, slots=True)
class WorkerInstructions:
    """The supervisor's message to a worker, with the engines and the trainer's progress.

    Attributes:
        engine_urls: the root URLs of the engines.
        policy_version: the trainer's policy version.
        required_version: the worker uses only engines with this version of the weights or a newer one; None: any.
        overrides: `KEY=VALUE` texts that change keys of the worker's configuration. The worker reads them at its start.
    """

    engine_urls: tuple[str, ...]
    policy_version: str
    required_version: str | None = None
    overrides: tuple[str, ...] = ()


WorkerReport = Heartbeat | WorkerFailure
_REPORT_TYPES: dict[str, type[WorkerReport]] = {"heartbeat": Heartbeat, "failure": WorkerFailure}


def encode_report(report: WorkerReport) -> bytes:
    """Return a report as one line of JSON."""
    (type_name,) = (kind for kind, report_type in _REPORT_TYPES.items() if isinstance(report, report_type))
    return dump_json({type_name: asdict(report)}) + b"\n"


def decode_report(line: bytes) -> WorkerReport:
    """Return the report that a line contains."""
    message: dict[str, Any] = orjson.loads(line)
    ((type_name, fields),) = message.items()
    return _REPORT_TYPES[type_name](**fields)


def encode_instructions(instructions: WorkerInstructions) -> bytes:
    """Return instructions as one line of JSON."""
    return orjson.dumps(asdict(instructions)) + b"\n"


def decode_instructions(line: bytes) -> WorkerInstructions:
    """Return the instructions that a line contains."""
    message: dict[str, Any] = orjson.loads(line)
    message |= {name: tuple(message[name]) for name in ("engine_urls", "overrides")}
    return WorkerInstructions(**message)


class SupervisorLink:
    """The worker's end of the link. It sends heartbeats as soon as it exists.

    Args:
        socket_fd: the descriptor of the socket that the worker got from its supervisor.
    """

    def __init__(self, socket_fd: int) -> None:
        self._socket = socket.socket(fileno=socket_fd)
        self._socket.set_inheritable(False)
        self._unread = b""
        self._instructions = WorkerInstructions((), "")
        self._first_received = threading.Event()
        self._stop_requested = threading.Event()
        self._send_lock = threading.Lock()
        self._make_heartbeat: Callable[[], Heartbeat] = Heartbeat
        self._on_instructions: Callable[[WorkerInstructions], None] | None = None
        self._thread = threading.Thread(target=self._exchange_lines, name="supervisor-link", daemon=True)
        self._thread.start()

    def wait_for_instructions(self) -> WorkerInstructions:
        """Return the newest instructions. Block the calling thread until the first ones have arrived."""
        self._first_received.wait()
        return self._instructions

    def start_reporting(
        self, make_heartbeat: Callable[[], Heartbeat], on_instructions: Callable[[WorkerInstructions], None]
    ) -> None:
        """Send the worker's own heartbeats from now on, and pass on all instructions.

        The first call of `on_instructions` is in the caller's thread, all other calls are in the thread of the link.

        Args:
            make_heartbeat: returns the heartbeat to send, twice a second.
            on_instructions: called with the newest instructions now, and with all later ones.
        """
        self._make_heartbeat, self._on_instructions = make_heartbeat, on_instructions
        on_instructions(self._instructions)

    def close(self, failure: WorkerFailure | None = None) -> None:
        """Send the last heartbeat, then the failure if there is one, and close the link."""
        self._stop_requested.set()
        self._socket.shutdown(socket.SHUT_RD)  # wakes the thread, which sleeps until its next heartbeat
        self._thread.join()
        if failure is not None:
            self._send(failure)
        self._socket.close()

    def die(self, failure: WorkerFailure) -> NoReturn:
        """Send the failure, then kill this process and the processes that it started. Any thread may call this."""
        self._send(failure)
        kill_own_process_group()

    def _exchange_lines(self) -> None:
        while not self._stop_requested.is_set():
            self._send(self._make_heartbeat())
            if select.select([self._socket], [], [], _HEARTBEAT_INTERVAL)[0]:
                self._receive()
        self._send(self._make_heartbeat())

    def _send(self, report: WorkerReport) -> None:
        try:
            with self._send_lock:
                self._socket.sendall(encode_report(report))
        except OSError:
            kill_own_process_group()

    def _receive(self) -> None:
        """Read the bytes that have arrived, and use the newest complete line, if there is one."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if self._stop_requested.is_set():
            return
        if not data:
            kill_own_process_group()
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines:
            self._instructions = decode_instructions(lines[-1])
            self._first_received.set()
            if self._on_instructions is not None:
                self._on_instructions(self._instructions)


def kill_own_process_group() -> NoReturn:
    """Kill this process and the processes that it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
