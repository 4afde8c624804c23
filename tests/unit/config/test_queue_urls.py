"""The URLs of queues are checked when a configuration is loaded."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from rollout.config.load import load_config
from rollout.config.queue_urls import fill_queue_url
from rollout.config.source import ConfigFileError
from transports import Lease, Queue, register_transport
from transports.memory import MemoryQueue

TEXT = """\
environment:
  class: rollout.environments.color_codeword:ColorCodeword
model: {name: tiny, path: builtin:tiny, renderer: qwen3-vl}
queue:
"""


def write(directory: Path, queue: str) -> Path:
    path = directory / "env.yaml"
    path.write_text(f"{TEXT}  {queue}\n")
    return path


def load_error(path: Path) -> str:
    with pytest.raises(ConfigFileError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "url", "problem"),
    [
        ("url", "flie:///data/records", "unknown scheme 'flie://'; did you mean 'file://'? Known schemes are file://,"),
        ("tasks", "/data/tasks", "the URL has no scheme. Known schemes are file://,"),
        (
            "url",
            "file://{run_dir}/x?retian=true",
            "unknown option 'retian'; did you mean 'retain'? The options of file:// are",
        ),
        (
            "tasks",
            "redis://h/0?straem=x",
            "unknown option 'straem'; did you mean 'stream'? The options of redis:// are",
        ),
        ("tasks", "rediss://h/0?ca=x", "unknown option 'ca'; did you mean 'ca_file'? The options of rediss:// are"),
        (
            "control",
            "zmq://h:5555?server=true",
            "unknown option 'server'; did you mean 'serve'? The options of zmq:// are",
        ),
        (
            "control",
            "memory://m?partition=2",
            "unknown option 'partition'; did you mean 'partitions'? The options of memory:// are",
        ),
        ("url", "redis://h/0?lease_time=long", "option lease_time='long': expected a number"),
        ("tasks", "file://{run_dirr}/tasks", "unknown field '{run_dirr}'; did you mean 'run_dir'?"),
        ("tasks", "redis://h/0?stream={environ}", "unknown field '{environ}'; did you mean 'environment'?"),
        ("tasks", "file:///a/{run_id}/x@y", "unknown field '{run_id}'; did you mean 'run_dir'?"),
        ("tasks", "redis://h/0?stream={x}", "unknown field '{x}'; the valid names are run_dir, environment."),
        ("url", "file://data/records", "expected file:// and an absolute directory, as in file:///data/run7/trajector"),
        ("url", "file://{environment}/records", "expected file:// and an absolute directory"),
        ("url", "zmq://h", "expected a host and a port, as in zmq://10.0.0.5:5555, found 'zmq://h'."),
        ("url", "memory://", "a memory queue needs a name, as in memory://tasks, found 'memory://'."),
        ("url", "redis://h:port/0", "this is not a URL: its port is not a number between 0 and 65535, found"),
    ],
)
def test_a_wrong_url_is_refused_with_file_line_and_key(tmp_path: Path, key: str, url: str, problem: str) -> None:
    path = write(tmp_path, f"{key}: {url}")
    message = load_error(path)
    assert message.startswith(f"{path}:5: queue.{key}: {problem}")
    assert not message.endswith("..")


@pytest.mark.parametrize(
    "url",
    [
        "file://{run_dir}/{environment}?retain=true&lease_time=2&high_water=1GiB",
        "file://localhost/data/records",
        "redis://me:s{3}cret@h:6379/0?stream={environment}-tasks",
        "rediss://h/0?ca_file=/ca.pem",
        "zmq://10.0.0.5:5555?serve=false",
        "memory://{environment}",
    ],
)
def test_a_valid_url_is_accepted(tmp_path: Path, url: str) -> None:
    assert load_config(write(tmp_path, f"url: '{url}'")).queue.url == url


def test_a_scheme_that_a_program_or_a_package_registers_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_mirror(url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
        return MemoryQueue(url.replace("looking-glass:", "memory:"), lease=lease, consume=consume)

    register_transport("looking-glass", open_mirror)
    load_config(write(tmp_path, "url: looking-glass://x?depth=2"))
    path = write(tmp_path, "url: sqlite:///data/q.db?journal=wal")
    assert "unknown scheme 'sqlite://'" in load_error(path)
    entry = metadata.EntryPoint("sqlite", "not_installed:Queue", "rollout.transports")
    monkeypatch.setattr("transports.registry.entry_points", metadata.EntryPoints([entry]).select)
    assert load_config(path).queue.url == "sqlite:///data/q.db?journal=wal"
    assert "did you mean 'sqlite://'?" in load_error(write(tmp_path, "url: sqilte:///x"))


def test_an_error_shows_a_mistake_beside_a_variable_and_never_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "redis://:s3cret@h/0")
    monkeypatch.setenv("OPTIONS", "hunter2=1")
    assert "unknown option 'straem'; did you mean 'stream'?" in load_error(write(tmp_path, "url: ${PLACE}?straem=x"))
    message = load_error(write(tmp_path, "url: redis://h/0?${OPTIONS}"))
    assert "hunter2" not in message
    assert message.endswith(
        "with its variables replaced, this is not the URL of a queue, found 'redis://h/0?${OPTIONS}'."
    )


def test_a_directory_in_a_url_is_percent_encoded() -> None:
    assert fill_queue_url("file://{run_dir}/{environment}", Path("/a run"), "colors") == "file:///a%20run/colors"


def test_the_check_imports_no_client_library(tmp_path: Path) -> None:
    path = write(tmp_path, "{url: 'redis://h/0', tasks: 'zmq://h:1', control: 'file://{run_dir}/control'}")
    code = f"""
import sys
from pathlib import Path
from rollout.config.load import load_config
load_config(Path({str(path)!r}))
print(sorted({{"redis", "zmq", "torch"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
