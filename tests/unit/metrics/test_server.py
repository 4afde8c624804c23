"""/metrics, /healthz and /readyz: where they are found, what they answer, and when the loop is busy."""

import asyncio
import gzip
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.server import MetricsPortTaken, ProcessStatus, ScrapeTargetFile, serve_metrics

Get = Callable[[str], tuple[int, str]]


def process_status(
    registry: CollectorRegistry | None = None, *, problem: str | None = None, unready: str | None = None
) -> ProcessStatus:
    return ProcessStatus(registry or CollectorRegistry(), lambda: problem, lambda: unready)


def test_what_is_well_is_told_and_what_is_not_is_named(get: Get) -> None:
    with serve_metrics(process_status(unready="no worker of squares is ready"), host="127.0.0.1", port=0) as url:
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (503, "no worker of squares is ready\n")
        assert get(f"{url}/nothing")[0] == 404


def test_where_it_listens_is_written_down_and_at_the_end_what_it_came_to(get: Get, tmp_path: Path) -> None:
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


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsPortTaken, match=f"127.0.0.1:{port}.*metrics.port: 0"):
            with serve_metrics(process_status(), host="127.0.0.1", port=port):
                pass


def test_a_client_that_sends_too_slowly_is_left(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("rollout.metrics.server._CONNECTION_TIMEOUT", 0.05)
    monkeypatch.setattr("rollout.metrics.server._POLL_INTERVAL", 0.01)
    with serve_metrics(process_status(), host="127.0.0.1", port=0) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n")
            assert connection.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_only_so_many_clients_are_answered_at_once(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
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
            except OSError:  # the thread of the first client has not seen yet that it left
                assert time.monotonic() < deadline


async def test_a_loop_that_stands_still_is_seen_from_outside(get: Get) -> None:
    lags: list[float] = []
    turned = asyncio.Event()

    def late(seconds: float) -> None:
        lags.append(seconds)
        turned.set()

    monitor = LoopMonitor(late)
    monitor_task = asyncio.create_task(monitor.run())
    await asyncio.wait_for(turned.wait(), 20)
    status = ProcessStatus(CollectorRegistry(), lambda: monitor.problem(0.2), lambda: None)
    found: list[tuple[int, str]] = []
    seen = threading.Event()

    def poll_health(url: str) -> None:
        # From outside of the loop, which stands still until this has seen it.
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
        assert found[-1][1].startswith("the event loop has not turned for ")
        turned.clear()
        await asyncio.wait_for(turned.wait(), 20)
        assert max(lags) > 0.2
        assert monitor.stalled_seconds < max(lags)
    monitor_task.cancel()
