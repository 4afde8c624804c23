"""Serves `/metrics`, `/healthz` and `/readyz` of one process, in threads that a busy event loop does not stop.

Meanwhile a file in the run's directory has the address, in the form that Prometheus reads (`file_sd_configs` with
`runs/*/metrics/*.json`). At the end, the last values are written to a file next to it, because no scrape follows.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import orjson
import structlog
from prometheus_client import MetricsHandler, generate_latest
from prometheus_client.registry import CollectorRegistry

from rollout.errors import ConfigurationError

log = structlog.get_logger()

_POLL_INTERVAL = 0.1
"""Seconds between two checks whether to end."""
_MAX_CONNECTIONS = 64
_CONNECTION_TIMEOUT = 30.0
"""Seconds that a connection may last, from its first byte to the end of the answer."""


class MetricsPortTaken(ConfigurationError):
    """The metrics cannot be served at the configured address."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What the server asks its process.

    Attributes:
        registry: the metrics.
        problem: returns why the process is unhealthy, or None.
        not_ready_reason: returns why the process is not ready, or None.
    """

    registry: CollectorRegistry
    problem: Callable[[], str | None]
    not_ready_reason: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class ScrapeTargetFile:
    """The file in a run's directory that says where a process serves its metrics.

    Attributes:
        directory: the directory of the file.
        name: the name of the process; the file is `<name>.json`, and the last values are in `<name>.prom`.
        labels: the labels that Prometheus adds to all metrics of the process.
    """

    directory: Path
    name: str
    labels: Mapping[str, str]

    @property
    def target_path(self) -> Path:
        """The file with the address, while the process serves."""
        return self.directory / f"{self.name}.json"

    @property
    def last_values_path(self) -> Path:
        """The file with the last values, after the process has ended."""
        return self.directory / f"{self.name}.prom"


@contextmanager
def serve_metrics(
    status: ProcessStatus, *, host: str, port: int, target_file: ScrapeTargetFile | None = None
) -> Iterator[str]:
    """Serve the metrics; port 0 takes a free port. Yields the URL of the server.

    Raises:
        MetricsPortTaken: another process listens there, or this machine does not have the address.
    """
    try:
        server = _Server((host, port), status)
    except OSError as error:
        raise MetricsPortTaken(
            f"metrics cannot be served at {host}:{port}: {error.strerror}. Choose metrics.port: 0 for a free port, "
            "another metrics.host, or metrics.serve: false."
        ) from None
    url = f"http://{_reachable_host(host)}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_INTERVAL,), name="metrics", daemon=True)
    thread.start()
    log.info("metrics are served", url=url)
    try:
        if target_file is not None:
            _write_target_file(target_file, url.removeprefix("http://"))
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if target_file is not None:
            target_file.target_path.unlink(missing_ok=True)
            try:
                target_file.last_values_path.write_bytes(generate_latest(status.registry))
            except Exception as error:  # noqa: BLE001 - the end of a run must not fail because of its metrics
                log.warning("the last values of the metrics were not written", error=str(error))


def _reachable_host(host: str) -> str:
    """Return the name at which other machines reach a server that listens at this address."""
    return socket.gethostname() if host == "0.0.0.0" else host  # noqa: S104 - compared only


def _write_target_file(target_file: ScrapeTargetFile, address: str) -> None:
    content = orjson.dumps([{"targets": [address], "labels": dict(target_file.labels)}])
    with suppress(OSError):
        target_file.directory.mkdir(exist_ok=True)
        draft_path = target_file.target_path.with_suffix(".draft")
        draft_path.write_bytes(content)
        draft_path.rename(target_file.target_path)  # Prometheus never reads half of the file


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], status: ProcessStatus) -> None:
        self.status = status
        self._deadlines: dict[Any, float] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own method looks up the name of the address. That may take long, and the name is not used.
        TCPServer.server_bind(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._deadlines) < _MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        self._deadlines[request] = time.monotonic() + _CONNECTION_TIMEOUT
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that last too long, because each connection has a thread."""
        now = time.monotonic()
        for request, deadline in list(self._deadlines.items()):
            if now > deadline:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # an OSError means that the client left or was too slow
            log.error("a request for metrics failed", exc_info=error)


class _Handler(MetricsHandler):
    """Adds the health of the process to prometheus_client's handler, which does not log requests."""

    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        status = self.server.status
        match self.path.partition("?")[0]:
            case "/metrics":
                self.registry = status.registry
                self._answer_metrics()
            case "/healthz":
                self._answer_health(status.problem())
            case "/readyz":
                self._answer_health(status.not_ready_reason())
            case _:
                self._answer(404, "there are /metrics, /healthz and /readyz")

    def _answer_metrics(self) -> None:
        try:
            super().do_GET()
        except OSError:  # the client left
            raise
        except Exception as error:
            log.error("the metrics cannot be collected", exc_info=error)
            self._answer(500, "the metrics cannot be collected; the log of this process says why")

    def _answer_health(self, problem: str | None) -> None:
        self._answer(503 if problem else 200, problem or "ok")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())
