"""The sandbox `docker`, with a stand-in for the Docker CLI that was recorded from the real one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rollout.errors import ConfigurationError
from rollout.programs.process import EndReason, ProgramLimits, ProgramProcess, run_program
from rollout.programs.sandboxes.base import Sandbox, SandboxedCommand, SandboxMissing, WrappedCommand
from rollout.programs.sandboxes.registry import open_sandbox, parse_sandbox
from rollout.programs.workspace import Workspace
from tests.procfs import is_alive
from tests.unit.programs import fake_docker

IMAGE = "rollout-test"


@dataclass(frozen=True, slots=True)
class Docker:
    """The stand-in, and a workspace.

    Attributes:
        state: the directory of the stand-in.
        workspace: the directories of the program.
    """

    state: Path
    workspace: Workspace

    def wrap(self, *argv: str, environ: Mapping[str, str] = {}, **options: Any) -> WrappedCommand:
        return open_docker(**options).wrap(
            SandboxedCommand(
                argv=argv,
                environ={"PATH": os.environ["PATH"], **self.workspace.environ(), **environ},
                workspace=self.workspace,
                memory_bytes=256 << 20,
                processes=64,
                read=(Path(__file__),),
            )
        )

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        wrapped = self.wrap(*argv, **options)
        return subprocess.run(
            wrapped.argv, env=wrapped.environ, input="typed", capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.state / "calls").read_text().splitlines()]

    def containers(self) -> dict[str, int]:
        return {path.name: int(path.read_text()) for path in (self.state / "containers").iterdir() if path.read_text()}


def open_docker(**options: Any) -> Sandbox:
    return open_sandbox(parse_sandbox({"kind": "docker", "image": IMAGE, **options}))


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    state = tmp_path / "state"
    (state / "containers").mkdir(parents=True)
    program = state / "docker"
    program.write_text(f"#!{sys.executable}\n" + Path(fake_docker.__file__).read_text())
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{state}:{os.environ['PATH']}")
    workspace = Workspace.create()
    yield Docker(state, workspace)
    workspace.remove()


def test_a_program_runs_in_its_directories_with_its_variables(docker: Docker) -> None:
    command = "cat; echo $OPENAI_API_KEY $HOME; pwd; echo 1 > file; exit 3"
    end = docker.run("sh", "-c", command, environ={"OPENAI_API_KEY": "a-key"})
    assert end.returncode == 3
    assert end.stdout.split() == ["typeda-key", str(docker.workspace.home), str(docker.workspace.work)]
    assert (docker.workspace.work / "file").read_text() == "1\n"


def test_the_exit_code_names_the_signal(docker: Docker) -> None:
    assert docker.run("sh", "-c", "kill -9 $$").returncode == 137


def test_the_key_is_no_argument(docker: Docker) -> None:
    assert "a-key" not in "\0".join(docker.wrap("true", environ={"OPENAI_API_KEY": "a-key"}).argv)


def test_the_path_of_this_machine_is_not_that_of_the_image(docker: Docker) -> None:
    assert str(docker.state) not in docker.run("sh", "-c", "echo $PATH").stdout
    assert docker.run("/bin/sh", "-c", "echo $PATH", environ={"PATH": "/mine:/bin"}).stdout == "/mine:/bin\n"


def test_a_container_has_limits_and_no_rights(docker: Docker) -> None:
    docker.run("true")
    call = docker.calls()[-1]
    pairs = set(pairwise(call))
    memory = str(256 << 20)
    assert pairs >= {
        *(("--memory", memory), ("--memory-swap", memory), ("--pids-limit", "64"), ("--cap-drop", "ALL")),
        *(("--security-opt", "no-new-privileges"), ("--user", f"{os.getuid()}:{os.getgid()}")),
        *(("--log-driver", "none"), ("--pull", "never")),
    }
    assert {"--rm", "--init"} <= set(call)


@pytest.mark.parametrize(("network", "names_host"), [("bridge", True), ("host", False)])
def test_a_container_knows_the_name_of_this_machine(docker: Docker, network: str, names_host: bool) -> None:
    assert docker.run("true", network=network).returncode == 0
    assert ("host.docker.internal:host-gateway" in docker.calls()[-1]) is names_host


def test_nothing_but_the_directories_of_the_program_and_read_is_mounted(docker: Docker, tmp_path: Path) -> None:
    docker.run("true", read=[str(tmp_path)])
    call, workspace = docker.calls()[-1], docker.workspace
    mounts = [value for option, value in pairwise(call) if option in ("--mount", "--volume")]
    assert mounts == [
        *(f"type=bind,source={path},target={path}" for path in (workspace.work, workspace.home, workspace.tmp)),
        *(f"type=bind,source={path},target={path},readonly" for path in (tmp_path, Path(__file__))),
    ]


def test_the_client_uses_the_daemon_of_the_worker_and_no_file_of_the_program(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///of/the/worker")
    wrapped = docker.wrap("sh", "-c", "echo $DOCKER_HOST", environ={"DOCKER_HOST": "of-the-program"})
    assert wrapped.environ["DOCKER_HOST"] == "unix:///of/the/worker"
    assert not Path(wrapped.environ["DOCKER_CONFIG"]).is_relative_to(docker.workspace.root)
    assert docker.run("sh", "-c", "echo $DOCKER_HOST", environ={"DOCKER_HOST": "mine"}).stdout == "mine\n"


@pytest.mark.parametrize(
    ("argv", "options", "reason"),
    [
        (("true",), {"image": "absent:1"}, "Error response from daemon: No such image: absent:1"),
        (("true",), {"network": "nonet"}, "Error response from daemon: network nonet not found"),
        (("nothere",), {}, "exec nothere failed: No such file or directory"),
        (("sh", "-c", "echo docker is here; exit 127"), {}, None),
        (("sh", "-c", "echo docker: no >&2; exit 1"), {}, None),
    ],
)
def test_a_failed_start_is_described(
    docker: Docker, argv: tuple[str, ...], options: Mapping[str, str], reason: str | None
) -> None:
    end = docker.run(*argv, **options)
    assert open_docker().describe_start_failure(end.returncode, end.stdout + end.stderr) == reason


def test_a_directory_that_is_gone_is_a_failed_start(docker: Docker) -> None:
    shutil.rmtree(docker.workspace.home)
    end = docker.run("true")
    reason = open_docker().describe_start_failure(end.returncode, end.stderr)
    assert reason is not None
    assert f"bind source path does not exist: {docker.workspace.home}" in reason


async def test_a_container_ends_with_its_program_at_the_timeout(docker: Docker, tmp_path: Path) -> None:
    command = "trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done"
    wrapped = docker.wrap("sh", "-c", command)
    end = await run_program(
        ProgramProcess(
            argv=wrapped.argv,
            environ=wrapped.environ,
            directory=docker.workspace.work,
            workspace=docker.workspace,
            output=tmp_path / "output",
            limits=ProgramLimits(seconds=3, output_bytes=1000),
            cleanup=wrapped.cleanup,
        )
    )
    assert end.reason is EndReason.TIMEOUT
    assert docker.calls()[-1][:2] == ["rm", "--force"]
    assert docker.containers() == {}


def test_cleanup_ends_a_container_whose_client_was_killed(docker: Docker) -> None:
    wrapped = docker.wrap("sh", "-c", "echo started; exec sleep 1000")
    with subprocess.Popen(wrapped.argv, env=wrapped.environ, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 30
        while not docker.containers():
            assert time.monotonic() < deadline
        client.kill()
    (pid,) = docker.containers().values()
    assert is_alive(pid)
    for command in wrapped.cleanup:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    while is_alive(pid):
        assert time.monotonic() < deadline
    assert docker.containers() == {}


def test_check_names_the_daemon_and_the_image(docker: Docker) -> None:
    assert open_docker().check() == f"docker {fake_docker.VERSION}, image {IMAGE}"


def test_check_says_that_the_daemon_does_not_answer(docker: Docker) -> None:
    (docker.state / "down").touch()
    with pytest.raises(SandboxMissing, match=r"does not answer: Cannot connect to the Docker daemon at .* Start it"):
        open_docker().check()


def test_check_says_how_to_get_an_image(docker: Docker) -> None:
    with pytest.raises(SandboxMissing, match=r"the image absent:1 is not on this machine: .*`docker pull absent:1`"):
        open_docker(image="absent:1").check()


def test_check_names_a_path_that_does_not_exist(docker: Docker, tmp_path: Path) -> None:
    with pytest.raises(SandboxMissing, match=f"sandbox.read names {tmp_path}/gone, which does not exist"):
        open_docker(read=[f"{tmp_path}/gone"]).check()


def test_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxMissing, match=r"apt-get install docker\.io"):
        open_docker().check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "docker"}, "the key 'image' is required"),
        ({"kind": "docker", "image": "a", "network": "none"}, "without a network, programs do not reach the gateway"),
        ({"kind": "docker", "image": "a", "read": ["data"]}, "'data' is a relative path; write an absolute path"),
        ({"kind": "docker", "image": "a", "read": ["/a,b"]}, "'/a,b' has a comma"),
        ({"kind": "docker", "image": "a", "imgae": "b"}, "unknown key 'imgae'; did you mean 'image'?"),
    ],
)
def test_wrong_options_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="docker") as refused:
        parse_sandbox(options)
    assert message in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_an_address_that_is_the_container_itself_is_refused(address: str) -> None:
    open_docker(network="host").check_address(address)
    with pytest.raises(ConfigurationError, match=r"gateway\.host to 0\.0\.0\.0.*gateway\.advertise to host\.docker"):
        open_docker().check_address(address)


@pytest.mark.parametrize("address", ["host.docker.internal:8000", "192.0.2.1:8000"])
def test_an_address_of_another_machine_is_accepted(address: str) -> None:
    open_docker().check_address(address)
