"""The line between a worker and its supervisor: JSON lines over a socket pair, each in one frozen shape.

The worker's end is a thread: what the supervisor hears does not depend on the worker's event loop. When the line goes
dead the supervisor is, and the worker goes with it, at once, and with everything that its environments had started.
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from rollout.claims import Outcome

_BEAT = 0.5


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker did so far, twice a second. `lag` is for how long its event loop has not turned."""

    ready: bool = False
    in_flight: int = 0
    finished: int = 0
    turns: int = 0
    tokens: int = 0
    reward: float = 0.0
    rewards: int = 0
    retries: int = 0
    lag: float = 0.0
    holder: str = ""
    status: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halted:
    """The worker ends, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Orders:
    """What the supervisor tells: where the engines are, and how far the trainer is."""

    engines: tuple[str, ...]
    policy_version: str


Report = Beat | Outcome | Halted
_REPORTS: dict[str, type[Report]] = {"beat": Beat, "failed": Outcome, "halted": Halted}


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
    """The worker's end. Made from the descriptor that the supervisor passed."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = b""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def first_orders(self) -> Orders:
        """What the supervisor says before anything else. Blocks, but not for long."""
        while (orders := self._received()) is None:
            continue
        return orders

    def start(self, news: Callable[[], Iterable[Report]], follow: Callable[[Orders], None]) -> None:
        """Twice a second, send what is new and hand on what the supervisor says, both in a thread."""
        self._thread = threading.Thread(target=self._keep, args=(news, follow), name="supervisor-link", daemon=True)
        self._thread.start()

    def close(self, last: Iterable[Report]) -> None:
        """Send what is still new, and these, and hang up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._send_all(last)
        self._socket.close()

    def _keep(self, news: Callable[[], Iterable[Report]], follow: Callable[[Orders], None]) -> None:
        while not self._stop.is_set():
            self._send_all(news())
            if select.select([self._socket], [], [], _BEAT)[0] and (orders := self._received()) is not None:
                follow(orders)
        self._send_all(news())

    def _send_all(self, reports: Iterable[Report]) -> None:
        for report in reports:
            self._send(report)

    def _send(self, report: Report) -> None:
        try:
            self._socket.sendall(encode_report(report))
        except OSError:
            _die()

    def _received(self) -> Orders | None:
        """The newest whole line of what has come, if any."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            _die()
        *lines, self._lines = (self._lines + data).split(b"\n")
        if not lines:
            return None
        told: dict[str, Any] = orjson.loads(lines[-1])
        return Orders(tuple(told["engines"]), told["policy_version"])


def _die() -> None:
    """Nobody is left to give this worker's tasks back, or to see it end."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
