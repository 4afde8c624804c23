"""The line between a worker and its supervisor: JSON lines over a socket pair, each in one frozen shape.

The worker's end is a thread: what the supervisor hears does not depend on the worker's event loop. When the line goes
dead the supervisor is, and the worker goes with it, at once, and with everything that its environments had started.
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from rollout.metrics.totals import SampleChanges

_HEARTBEAT_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker did so far, twice a second. `metrics` are the samples that changed since the last heartbeat."""

    ready: bool = False
    in_flight: int = 0
    turns: int = 0
    tokens: int = 0
    retries: int = 0
    lease_holder: str = ""
    metrics: SampleChanges = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """The worker ends, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerInstructions:
    """What the supervisor tells: where the engines are, and how far the trainer is."""

    engine_urls: tuple[str, ...]
    policy_version: str
    required_version: str | None = None
    """The version of the weights without which no engine is used; none: whatever they have."""


WorkerReport = Heartbeat | WorkerFailure
_REPORT_TYPES: dict[str, type[WorkerReport]] = {"heartbeat": Heartbeat, "failure": WorkerFailure}


def encode_report(report: WorkerReport) -> bytes:
    (type_name,) = (kind for kind, report_type in _REPORT_TYPES.items() if isinstance(report, report_type))
    return orjson.dumps({type_name: asdict(report)}) + b"\n"


def decode_report(line: bytes) -> WorkerReport:
    message: dict[str, Any] = orjson.loads(line)
    ((type_name, fields),) = message.items()
    return _REPORT_TYPES[type_name](**fields)


def encode_instructions(instructions: WorkerInstructions) -> bytes:
    return orjson.dumps(asdict(instructions)) + b"\n"


def decode_instructions(line: bytes) -> WorkerInstructions:
    message: dict[str, Any] = orjson.loads(line)
    return WorkerInstructions(tuple(message.pop("engine_urls")), **message)


class SupervisorLink:
    """The worker's end. Made from the descriptor that the supervisor passed; heard from that moment on."""

    def __init__(self, socket_fd: int) -> None:
        self._socket = socket.socket(fileno=socket_fd)
        self._socket.set_inheritable(False)
        self._unread = b""
        self._instructions = WorkerInstructions((), "")
        self._first_received = threading.Event()
        self._stop_requested = threading.Event()
        self._make_heartbeat: Callable[[], Heartbeat] = Heartbeat
        self._on_instructions: Callable[[WorkerInstructions], None] | None = None
        self._thread = threading.Thread(target=self._exchange_lines, name="supervisor-link", daemon=True)
        self._thread.start()

    def wait_for_instructions(self) -> WorkerInstructions:
        """What the supervisor says before anything else. Blocks, but not for long."""
        self._first_received.wait()
        return self._instructions

    def start_reporting(
        self, make_heartbeat: Callable[[], Heartbeat], on_instructions: Callable[[WorkerInstructions], None]
    ) -> None:
        """From now on, tell this twice a second, and hand on what the supervisor says; both happen in a thread."""
        self._make_heartbeat, self._on_instructions = make_heartbeat, on_instructions
        on_instructions(self._instructions)

    def close(self, failure: WorkerFailure | None = None) -> None:
        """Tell the last of it, and why if it was not meant to end, and hang up."""
        self._stop_requested.set()
        self._socket.shutdown(socket.SHUT_RD)  # the thread need not wait for its next beat
        self._thread.join()
        if failure is not None:
            self._send(failure)
        self._socket.close()

    def _exchange_lines(self) -> None:
        while not self._stop_requested.is_set():
            self._send(self._make_heartbeat())
            if select.select([self._socket], [], [], _HEARTBEAT_INTERVAL)[0]:
                self._receive()
        self._send(self._make_heartbeat())

    def _send(self, report: WorkerReport) -> None:
        try:
            self._socket.sendall(encode_report(report))
        except OSError:
            _kill_own_process_group()

    def _receive(self) -> None:
        """Take in the newest whole line of what has come, if any."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if self._stop_requested.is_set():
            return
        if not data:
            _kill_own_process_group()
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines:
            self._instructions = decode_instructions(lines[-1])
            self._first_received.set()
            if self._on_instructions is not None:
                self._on_instructions(self._instructions)


def _kill_own_process_group() -> None:
    """Nobody is left to give this worker's tasks back, or to see it end."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
