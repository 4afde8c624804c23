"""The sandbox `docker`: a container, started with the Docker CLI.

The image has the program and all that it needs. The directories of the workspace are mounted at the paths that they
have outside. Programs reach the gateway over the network of the container, so the gateway must listen there.
"""

import ipaddress
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from rollout.errors import ConfigurationError
from rollout.programs.sandboxes.base import (
    Sandbox,
    SandboxedCommand,
    SandboxMissing,
    SandboxOptions,
    WrappedCommand,
)

_HOST_NAME = "host.docker.internal"
"""The name of this machine in a container."""
_START_FAILURES = (125, 126, 127)
"""The exit codes of `docker run` if the container or its command cannot be started. A command may have them, too."""
_START_FAILURE = re.compile(r"^(?:docker: |\[FATAL tini \(\d+\)\] )(.+)$", re.MULTILINE)
"""The line in which `docker run`, or the init process in the container, says why."""
_CLIENT_VARIABLES = (
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"),
    "DOCKER_API_VERSION",
)
"""The variables of the worker with which the Docker CLI finds its daemon."""
_CHECK_SECONDS = 60


def _check_readable(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"{text!r} is a relative path; write an absolute path, or one that begins with '~/'")
    if "," in text:
        raise ValueError(f"{text!r} has a comma, which the option --mount of docker does not take; rename it")
    return str(path)


def _check_network(name: str) -> str:
    if name == "none":
        raise ValueError("without a network, programs do not reach the gateway; use 'bridge', or the sandbox 'bwrap'")
    return name


class DockerOptions(SandboxOptions):
    """The keys of `environment.sandbox` for `kind: docker`."""

    kind: str = "docker"
    """The name of the sandbox."""
    image: str = Field(min_length=1)
    """The image, which is on this machine. Its ENTRYPOINT is not used."""
    network: Annotated[str, Field(min_length=1), AfterValidator(_check_network)] = "bridge"
    """The network of Docker. With `host`, programs reach whatever the worker reaches."""
    read: tuple[Annotated[str, AfterValidator(_check_readable)], ...] = ()
    """Files and directories of this machine that are mounted at the same paths, read-only."""


class DockerSandbox(Sandbox):
    """Runs programs in containers."""

    Options = DockerOptions
    signals_are_codes: ClassVar[bool] = True

    def __init__(self, options: SandboxOptions) -> None:
        super().__init__(options)
        assert isinstance(options, DockerOptions)
        self._image, self._network, self._read = options.image, options.network, options.read

    def check(self) -> str:
        """Return the version of the daemon, after the image was found."""
        docker = _find_docker()
        for path in self._read:
            if not os.path.exists(path):
                raise SandboxMissing(
                    f"sandbox.read names {path}, which does not exist; correct the path, or remove it from the list"
                )
        version = _ask(docker, "version", "--format", "{{.Server.Version}}")
        if version.returncode != 0:
            raise SandboxMissing(
                f"the Docker daemon does not answer: {_words(version)}. Start it, let the user of the worker use it "
                "(group docker), or set DOCKER_HOST"
            )
        image = _ask(docker, "image", "inspect", "--format", "{{.Id}}", self._image)
        if image.returncode != 0:
            raise SandboxMissing(
                f"the image {self._image} is not on this machine: {_words(image)}. Run `docker pull {self._image}`, or "
                "build it"
            )
        return f"docker {version.stdout.strip()}, image {self._image}"

    def check_address(self, address: str) -> None:
        """Check that the address is not the container itself."""
        if self._network != "host" and _is_loopback(_host_of(address)):
            raise ConfigurationError(
                f"sandbox 'docker' with the network {self._network}: programs get the gateway's address {address}, "
                "which is the container itself. Set gateway.host to 0.0.0.0, so that the gateway listens where "
                f"containers reach it, and gateway.advertise to {_HOST_NAME}, the name of this machine inside."
            )

    def find_program(self, name: str) -> str | None:
        """Return the name itself, because only the image knows the program."""
        return name

    def wrap(self, command: SandboxedCommand) -> WrappedCommand:
        """Return the `docker run` for a command. Variables are named there; their values stay in the environment."""
        docker, workspace = _find_docker(), command.workspace
        name = f"{workspace.root.name}-{uuid.uuid4().hex[:8]}"
        options = ["--rm", "--name", name, "--init", "--interactive", "--pull", "never", "--log-driver", "none"]
        options += ["--network", self._network]
        if self._network != "host":
            options += ["--add-host", f"{_HOST_NAME}:host-gateway"]
        for directory in workspace.writable:
            options += ["--mount", f"type=bind,source={directory},target={directory}"]
        for path in (*self._read, *command.read):
            options += ["--mount", f"type=bind,source={path},target={path},readonly"]
        options += ["--workdir", str(workspace.work), "--user", f"{os.getuid()}:{os.getgid()}"]
        options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        if command.memory_bytes is not None:  # --memory-swap is the sum of both, so there is no swap
            options += ["--memory", str(command.memory_bytes), "--memory-swap", str(command.memory_bytes)]
        if command.processes is not None:
            options += ["--pids-limit", str(command.processes)]
        client = {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ}
        client.setdefault("DOCKER_CONFIG", str(Path.home() / ".docker"))  # programs can write the one in their HOME
        for variable, value in command.environ.items():
            if variable == "PATH" and value == os.environ.get("PATH"):  # it is for this machine, not for the image
                continue
            options += ["--env", f"{variable}={value}" if variable in client else variable]
        program, *arguments = command.argv
        return WrappedCommand(
            argv=(docker, "run", *options, "--entrypoint", program, self._image, *arguments),
            environ={**command.environ, **client},
            cleanup=((docker, "rm", "--force", name),),
        )

    def describe_start_failure(self, exit_code: int, output: str) -> str | None:
        """Return what `docker run` says if it did not start the command."""
        said = _START_FAILURE.search(output) if exit_code in _START_FAILURES else None
        return None if said is None else said[1]


def _find_docker() -> str:
    docker = shutil.which("docker")
    if docker is None:
        raise SandboxMissing(
            "the command docker was not found, which sandbox 'docker' needs; install the Docker CLI (Debian: apt-get "
            "install docker.io), or choose another sandbox"
        )
    return docker


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - it is the Docker CLI
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_CHECK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxMissing(f"the Docker CLI does not answer: {error}; see whether `docker version` does") from error


def _words(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join(result.stderr.split()).removesuffix(".") or f"the exit code is {result.returncode}"


def _host_of(address: str) -> str:
    """Return the host of HOST, HOST:PORT or [HOST]:PORT."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return address.is_loopback
