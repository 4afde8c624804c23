"""Start and end of an embedded engine, in a thread and as a process."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from renderers_adapter.errors import AdapterError
from rollout.serving.embedded import TINY_MODEL, EmbeddedServer, EmbeddedSettings
from rollout.serving.policies import PolicyNotFound
from rollout.serving.server import ServerFailed

SERVE = """
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.serving.server import serve_until_signal
serve_until_signal(EmbeddedServer(EmbeddedSettings()), lambda url: print(url, flush=True))
"""


def test_an_engine_answers_on_loopback_until_it_is_stopped() -> None:
    before = threading.active_count()
    with EmbeddedServer(EmbeddedSettings()) as url:
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    assert threading.active_count() == before


def test_an_engine_never_prints(capfd: pytest.CaptureFixture[str]) -> None:
    with EmbeddedServer(EmbeddedSettings()) as url:
        httpx.get(f"{url}/nothing")
        httpx.post(f"{url}/inference/v1/generate", content=b"{")
    assert capfd.readouterr() == ("", "")


def test_several_engines_run_at_the_same_time() -> None:
    with (
        EmbeddedServer(EmbeddedSettings(model_name="a")) as first,
        EmbeddedServer(EmbeddedSettings(model_name="b")) as second,
    ):
        names = [httpx.get(f"{url}/v1/models").json()["data"][0]["id"] for url in (first, second)]
    assert names == ["a", "b"]


def test_the_error_of_a_port_in_use_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerFailed, match=f"cannot listen on 127.0.0.1:{port}"):
            EmbeddedServer(EmbeddedSettings(), port=port).start()


def test_an_engine_that_was_not_started_can_be_stopped() -> None:
    server = EmbeddedServer(EmbeddedSettings())
    server.stop()
    assert not server.running


def test_a_missing_policy_is_an_error_before_the_start() -> None:
    with pytest.raises(PolicyNotFound, match="nowhere:Policy"):
        EmbeddedServer(EmbeddedSettings(policy="nowhere:Policy"))


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_an_incomplete_model_directory_is_an_error_before_the_start(tmp_path: Path, missing: str) -> None:
    model = Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))
    (model / missing).unlink()
    (model / "config.json").write_text('{"vision_config": {}}', "utf-8")
    with pytest.raises(AdapterError, match=missing):
        EmbeddedServer(EmbeddedSettings(model_dir=model))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_engine_cleanly(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert httpx.get(f"{url}/health").status_code == 200
            process.send_signal(number)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, rest, errors) == (0, "", "")
