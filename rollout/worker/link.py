"""The link between a worker and its supervisor: JSON lines over a socket pair, each with the fields of one dataclass.

The worker's end is a thread, so heartbeats do not depend on the worker's event loop. If the link breaks, the supervisor
is dead. The worker then kills itself at once, with everything that it started.
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
    """The state of a worker, which sends it twice a second.

    Attributes:
        ready: whether the worker takes orders; False while it still starts.
        in_flight: how many rollouts it plays now.
        finished: how many rollouts it has ended.
        lease_holder: the name under which the worker holds leases on the tasks queue; empty while it still starts.
    """

    ready: bool = False
    in_flight: int = 0
    finished: int = 0
    lease_holder: str = ""


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """The worker ends because of a failure.

    Attributes:
        reason: the text of the error.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerInstructions:
    """What the supervisor sends to a worker: the engines, and the trainer's progress.

    Attributes:
        engine_urls: the roots of the engines.
        policy_version: the trainer's version of the policy.
        required_version: only engines with weights of this version or a newer one are used; None: any engine is used.
        overrides: the `KEY=VALUE` texts that change keys of the worker's configuration; read once, at its start.
    """

    engine_urls: tuple[str, ...]
    policy_version: str
    required_version: str | None = None
    overrides: tuple[str, ...] = ()


WorkerReport = Heartbeat | WorkerFailure
_REPORT_TYPES: dict[str, type[WorkerReport]] = {"heartbeat": Heartbeat, "failure": WorkerFailure}


def encode_report(report: WorkerReport) -> bytes:
    """Return the line that carries a report."""
    (type_name,) = (kind for kind, report_type in _REPORT_TYPES.items() if isinstance(report, report_type))
    return dump_json({type_name: asdict(report)}) + b"\n"


def decode_report(line: bytes) -> WorkerReport:
    """Return the report in a line."""
    message: dict[str, Any] = orjson.loads(line)
    ((type_name, fields),) = message.items()
    return _REPORT_TYPES[type_name](**fields)


def encode_instructions(instructions: WorkerInstructions) -> bytes:
    """Return the line that carries instructions."""
    return orjson.dumps(asdict(instructions)) + b"\n"


def decode_instructions(line: bytes) -> WorkerInstructions:
    """Return the instructions in a line."""
    message: dict[str, Any] = orjson.loads(line)
    message |= {name: tuple(message[name]) for name in ("engine_urls", "overrides")}
    return WorkerInstructions(**message)


class SupervisorLink:
    """The worker's end of the link, on the socket that the supervisor passed. It sends heartbeats from the start."""

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
        """Return the newest instructions; block until the first ones have come."""
        self._first_received.wait()
        return self._instructions

    def start_reporting(
        self, make_heartbeat: Callable[[], Heartbeat], on_instructions: Callable[[WorkerInstructions], None]
    ) -> None:
        """Report to the supervisor from now on. Both functions are called in the thread of the link.

        Args:
            make_heartbeat: returns the heartbeat, which is sent twice a second.
            on_instructions: gets the present instructions now, and all new ones.
        """
        self._make_heartbeat, self._on_instructions = make_heartbeat, on_instructions
        on_instructions(self._instructions)

    def close(self, failure: WorkerFailure | None = None) -> None:
        """Send the last heartbeat and the failure, if there was one, and close the link."""
        self._stop_requested.set()
        self._socket.shutdown(socket.SHUT_RD)  # wakes the thread, which waits for its next heartbeat
        self._thread.join()
        if failure is not None:
            self._send(failure)
        self._socket.close()

    def die(self, failure: WorkerFailure) -> NoReturn:
        """Send the failure, and kill this process with everything that it started. Any thread may call it."""
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
        """Read what has come, and use the newest complete line, if there is one."""
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
    """Kill this process and everything that it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
