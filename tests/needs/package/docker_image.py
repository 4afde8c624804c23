"""An image that a Docker daemon builds."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BUILD_TIMEOUT = 3600  # torch for CUDA has gigabytes
_RUN_TIMEOUT = 120
_STOP_TIMEOUT = 60


def docker_daemon_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=60).returncode == 0


@dataclass(frozen=True, slots=True)
class Container:
    """A container in the foreground of `docker run`, which ends with its exit code."""

    name: str
    _client: "subprocess.Popen[str]"

    def ended(self) -> bool:
        return self._client.poll() is not None

    def terminate(self) -> tuple[int, str]:
        subprocess.run(["docker", "kill", "--signal", "TERM", self.name], check=True, timeout=_STOP_TIMEOUT)
        out, _ = self._client.communicate(timeout=_STOP_TIMEOUT)
        return self._client.returncode, out


@dataclass(frozen=True, slots=True)
class DockerImage:
    """A target of the Dockerfile, under a name that the tests remove."""

    name: str

    @classmethod
    def build(cls, context: Path, target: str, arguments: Mapping[str, str]) -> "DockerImage":
        image = cls(f"rollout-tests-{target}-{uuid.uuid4().hex[:8]}")
        options = [option for key, value in arguments.items() for option in ("--build-arg", f"{key}={value}")]
        command = ["docker", "build", "--target", target, "--tag", image.name, *options, str(context)]
        subprocess.run(command, check=True, timeout=_BUILD_TIMEOUT)
        return image

    def remove(self) -> None:
        subprocess.run(["docker", "rmi", "--force", self.name], check=False, timeout=_STOP_TIMEOUT)

    def run(
        self, *words: str, entrypoint: str | None = None, user: str | None = None, shared: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        options = [*self._options(shared), *(("--user", user) if user else ())]
        options += ["--entrypoint", entrypoint] if entrypoint else []
        command = ["docker", "run", "--rm", *options, self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_TIMEOUT)

    @contextmanager
    def start(self, *words: str, shared: Path) -> Iterator[Container]:
        name = f"rollout-tests-{uuid.uuid4().hex[:8]}"
        command = ["docker", "run", "--rm", "--name", name, *self._options(shared), self.name, *words]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield Container(name, client)
        finally:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False, timeout=_STOP_TIMEOUT)
            client.communicate(timeout=_STOP_TIMEOUT)

    def _options(self, shared: Path | None) -> list[str]:
        return ["--volume", f"{shared}:{shared}", "--workdir", str(shared)] if shared else []
