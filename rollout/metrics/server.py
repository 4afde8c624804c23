"""Serves `/metrics`, `/healthz` and `/readyz` of one process, in threads that a busy event loop does not block.

While the server runs, a file in the run's directory contains the server's address, in the form that Prometheus reads
(`file_sd_configs` with `runs/*/metrics/*.json`). When the server stops, it writes the last values to another file in
the same directory, because Prometheus can no longer get them from the server.
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
"""Seconds between two checks whether the server must stop."""
_MAX_CONNECTIONS = 64
_CONNECTION_TIMEOUT = 30.0
"""The maximum duration of a connection in seconds."""


class MetricsPortTaken(ConfigurationError):
    """The server of the metrics cannot listen at the configured address."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Gives the server access to the metrics and the health of its process.

    Attributes:
        registry: the metrics of the process.
        problem: the function that returns why the process is unhealthy, or None if it is healthy.
        not_ready_reason: the function that returns why the process is not ready, or None if it is ready.
    """

    registry: CollectorRegistry
    problem: Callable[[], str | None]
    not_ready_reason: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class ScrapeTargetFile:
    """The file in a run's directory that says where a process serves its metrics.

    Attributes:
        directory: the directory of the file.
        name: the name of the process. `<name>.json` contains the address, and `<name>.prom` the last values.
        labels: the labels that Prometheus adds to all metrics of the process.
    """

    directory: Path
    name: str
    labels: Mapping[str, str]

    @property
    def target_path(self) -> Path:
        """The path of the file with the address; it exists while the server runs."""
        return self.directory / f"{self.name}.json"

    @property
    def last_values_path(self) -> Path:
        """The path of the file with the last values; it is written when the server stops."""
        return self.directory / f"{self.name}.prom"


@contextmanager
def serve_metrics(
    status: ProcessStatus, *, host: str, port: int, target_file: ScrapeTargetFile | None = None
) -> Iterator[str]:
    """Serve the metrics in a `with` block, and yield the URL of the server. Port 0 means any free port.

    Raises:
        MetricsPortTaken: another process uses the port, or the host is not an address of this machine.
    """
    try:
        server = _Server((host, port), status)
    except OSError as error:
        raise MetricsPortTaken(
            f"metrics cannot be served at {host}:{port}: {error.strerror}. Set metrics.port to 0 for any free port, "
            "set another metrics.host, or set metrics.serve to false."
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
        draft_path.rename(target_file.target_path)  # atomic: Prometheus never reads a part of the file


class _Server(ThreadingHTTPServer):
    """An HTTP server with limits for the number and the duration of connections."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], status: ProcessStatus) -> None:
        self.status = status
        self._deadlines: dict[Any, float] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind would look up the host's name. This may take long, and the name is not used.
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
        """Close connections that last too long, because each connection needs a thread."""
        now = time.monotonic()
        for request, deadline in list(self._deadlines.items()):
            if now > deadline:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # an OSError means that the client disconnected or was too slow
            log.error("a request for metrics failed", exc_info=error)


class _Handler(MetricsHandler):
    """Answers requests. It extends the handler of prometheus_client with the health of the process."""

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
                self._answer(404, "not found; use /metrics, /healthz or /readyz")

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
