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

from rollout.metrics.totals import Samples

_BEAT = 0.5


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker did so far, twice a second. `lag` is for how long its event loop has not turned.

    `metrics` are the samples that changed since the last beat.
    """

    ready: bool = False
    in_flight: int = 0
    turns: int = 0
    tokens: int = 0
    retries: int = 0
    lag: float = 0.0
    holder: str = ""
    metrics: Samples = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halted:
    """The worker ends, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Orders:
    """What the supervisor tells: where the engines are, and how far the trainer is."""

    engines: tuple[str, ...]
    policy_version: str
    required: str | None = None
    """The version of the weights without which no engine is used; none: whatever they have."""


Report = Beat | Halted
_REPORTS: dict[str, type[Report]] = {"beat": Beat, "halted": Halted}


def encode_report(report: Report) -> bytes:
    (kind,) = (kind for kind, shape in _REPORTS.items() if isinstance(report, shape))
    return orjson.dumps({kind: asdict(report)}) + b"\n"


def decode_report(line: bytes) -> Report:
    told: dict[str, Any] = orjson.loads(line)
    ((kind, values),) = told.items()
    return _REPORTS[kind](**values)


def encode_orders(orders: Orders) -> bytes:
    return orjson.dumps(asdict(orders)) + b"\n"


class SupervisorLink:
    """The worker's end. Made from the descriptor that the supervisor passed; heard from that moment on."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = b""
        self._orders = Orders((), "")
        self._first = threading.Event()
        self._stop = threading.Event()
        self._beat: Callable[[], Beat] = Beat
        self._follow: Callable[[Orders], None] | None = None
        self._thread = threading.Thread(target=self._keep, name="supervisor-link", daemon=True)
        self._thread.start()

    def first_orders(self) -> Orders:
        """What the supervisor says before anything else. Blocks, but not for long."""
        self._first.wait()
        return self._orders

    def ready(self, beat: Callable[[], Beat], follow: Callable[[Orders], None]) -> None:
        """From now on, tell this twice a second, and hand on what the supervisor says; both happen in a thread."""
        self._beat, self._follow = beat, follow
        follow(self._orders)

    def close(self, halted: Halted | None = None) -> None:
        """Tell the last of it, and why if it was not meant to end, and hang up."""
        self._stop.set()
        self._socket.shutdown(socket.SHUT_RD)  # the thread need not wait for its next beat
        self._thread.join()
        if halted is not None:
            self._send(halted)
        self._socket.close()

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._send(self._beat())
            if select.select([self._socket], [], [], _BEAT)[0]:
                self._receive()
        self._send(self._beat())

    def _send(self, report: Report) -> None:
        try:
            self._socket.sendall(encode_report(report))
        except OSError:
            _die()

    def _receive(self) -> None:
        """Take in the newest whole line of what has come, if any."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if self._stop.is_set():
            return
        if not data:
            _die()
        *lines, self._lines = (self._lines + data).split(b"\n")
        if lines:
            told: dict[str, Any] = orjson.loads(lines[-1])
            self._orders = Orders(tuple(told["engines"]), told["policy_version"], told["required"])
            self._first.set()
            if self._follow is not None:
                self._follow(self._orders)


def _die() -> None:
    """Nobody is left to give this worker's tasks back, or to see it end."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
