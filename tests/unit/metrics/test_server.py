"""The server of /metrics, /healthz and /readyz: its answers, its files, and a busy event loop."""

import asyncio
import gzip
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.server import MetricsPortTaken, ProcessStatus, ScrapeTargetFile, serve_metrics
from rollout.rundir.claims import ClaimsError
from tests.unit.metrics.scraping import get


def process_status(
    registry: CollectorRegistry | None = None, *, problem: str | None = None, unready: str | None = None
) -> ProcessStatus:
    return ProcessStatus(registry or CollectorRegistry(), lambda: problem, lambda: unready)


def test_health_and_readiness_are_answered_with_the_reason() -> None:
    with serve_metrics(process_status(unready="no worker of squares is ready"), host="127.0.0.1", port=0) as url:
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (503, "no worker of squares is ready\n")
        assert get(f"{url}/nothing")[0] == 404


def test_a_file_has_the_address_while_the_server_runs_and_then_the_last_metrics(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    turns = catalogue.TURNS.counter(registry).labels("squares", "bridge")
    announcement = ScrapeTargetFile(tmp_path / "metrics", "launch", {"run": "run7"})
    with serve_metrics(process_status(registry), host="127.0.0.1", port=0, target_file=announcement) as url:
        (target,) = json.loads((tmp_path / "metrics" / "launch.json").read_text())
        assert target == {"targets": [url.removeprefix("http://")], "labels": {"run": "run7"}}
        turns.inc(3)
        assert 'rollout_turns_total{environment="squares",prompt="bridge"} 3.0' in get(f"{url}/metrics")[1]
        turns.inc()
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["launch.prom"]
    assert 'prompt="bridge"} 4.0' in (tmp_path / "metrics" / "launch.prom").read_text()


def test_a_scraper_gets_the_format_and_the_compression_that_it_asks_for() -> None:
    registry = CollectorRegistry()
    catalogue.TURNS.counter(registry).labels("squares", "bridge").inc(3)
    headers = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}
    with serve_metrics(process_status(registry), host="127.0.0.1", port=0) as url:
        request = urllib.request.Request(f"{url}/metrics?name[]=rollout_turns_total", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            text = gzip.decompress(response.read()).decode()
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    (family,) = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert [sample.value for sample in family.samples if sample.name == "rollout_turns_total"] == [3.0]


def test_a_server_at_all_addresses_is_written_down_with_the_name_of_its_machine(tmp_path: Path) -> None:
    target_file = ScrapeTargetFile(tmp_path, "launch", {})
    with serve_metrics(process_status(), host="0.0.0.0", port=0, target_file=target_file):
        (target,) = json.loads(target_file.target_path.read_text())
    assert target["targets"][0].startswith(f"{socket.gethostname()}:")


class BrokenCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        raise ClaimsError("the claims cannot be read")


def test_a_failing_collector_is_an_answer_500_and_ends_no_process(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    target_file = ScrapeTargetFile(tmp_path, "launch", {})
    with serve_metrics(process_status(registry), host="127.0.0.1", port=0, target_file=target_file) as url:
        registry.register(BrokenCollector())
        assert get(f"{url}/metrics") == (500, "the metrics cannot be collected; the log of this process says why\n")
        assert get(f"{url}/healthz")[0] == 200
    assert not target_file.last_values_path.exists()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsPortTaken, match=f"127.0.0.1:{port}.*metrics.port to 0"):
            with serve_metrics(process_status(), host="127.0.0.1", port=port):
                pass


def test_a_client_that_sends_too_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("rollout.metrics.server._CONNECTION_TIMEOUT", 0.05)
    monkeypatch.setattr("rollout.metrics.server._POLL_INTERVAL", 0.01)
    with serve_metrics(process_status(), host="127.0.0.1", port=0) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n")
            assert connection.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_more_clients_than_the_limit_are_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.metrics.server._MAX_CONNECTIONS", 1)
    monkeypatch.setattr("rollout.metrics.server._POLL_INTERVAL", 0.01)
    with serve_metrics(process_status(), host="127.0.0.1", port=0) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address), socket.create_connection(address, timeout=20) as refused:
            assert refused.recv(1) == b""
        deadline = time.monotonic() + 20
        while True:
            try:
                assert get(f"{url}/healthz") == (200, "ok\n")
                break
            except OSError:  # the thread of the first client may not have ended yet
                assert time.monotonic() < deadline


async def test_an_event_loop_that_is_blocked_is_reported_by_healthz() -> None:
    lags: list[float] = []
    turned = asyncio.Event()

    def note_lag(seconds: float) -> None:
        lags.append(seconds)
        turned.set()

    monitor = LoopMonitor(note_lag)
    monitor_task = asyncio.create_task(monitor.run())
    await asyncio.wait_for(turned.wait(), 20)
    status = ProcessStatus(CollectorRegistry(), lambda: monitor.problem(0.2), lambda: None)
    found: list[tuple[int, str]] = []
    seen = threading.Event()

    def poll_health(url: str) -> None:
        # In a thread, because the event loop is blocked until `seen` is set.
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found.append(get(f"{url}/healthz"))
            if found[-1][0] == 503:
                break
            time.sleep(0.02)
        seen.set()

    with serve_metrics(status, host="127.0.0.1", port=0) as url:
        threading.Thread(target=poll_health, args=(url,)).start()
        seen.wait(30)
        assert found[-1][0] == 503
        assert found[-1][1].startswith("the event loop has not run for ")
        turned.clear()
        await asyncio.wait_for(turned.wait(), 20)
        assert max(lags) > 0.2
        assert monitor.stalled_seconds < max(lags)
    monitor_task.cancel()
