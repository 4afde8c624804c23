"""How bubblewrap is checked before a run, and how a program in it starts and ends."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.programs.sandboxes import relay
from rollout.programs.sandboxes.base import SandboxedCommand, SandboxMissing
from rollout.programs.sandboxes.registry import open_sandbox, parse_sandbox
from tests.needs.agents.sandboxes.conftest import WHY_NOT, World

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"bubblewrap does not work here: {WHY_NOT}")


def test_check_names_the_version() -> None:
    assert open_sandbox(parse_sandbox("bwrap")).check().startswith("bwrap 0.")


def test_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxMissing, match="apt-get install bubblewrap"):
        open_sandbox(parse_sandbox("bwrap")).check()


def test_check_names_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SandboxMissing, match=f"sandbox.read names {tmp_path}/gone, which does not exist"):
        open_sandbox(parse_sandbox({"kind": "bwrap", "read": [f"{tmp_path}/gone"]})).check()


def test_check_says_why_user_namespaces_cannot_be_made(world: World) -> None:
    program = (
        "from rollout.programs.sandboxes.registry import *\n"
        "try:\n    open_sandbox(parse_sandbox('bwrap')).check()\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    root = Path(relay.__file__).parents[3]
    said = world.run("bwrap", sys.executable, "-c", program, read=(root,), environ={"PYTHONPATH": str(root)}).stdout
    assert said.startswith("SandboxMissing bwrap cannot run a program: bwrap: ")
    assert "raise user.max_user_namespaces with `sysctl`" in said


def test_check_says_that_a_kernel_refuses_the_filter_of_system_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.programs.sandboxes.bwrap.build_filter", lambda: bytes(8))  # no return at its end
    with pytest.raises(SandboxMissing, match="Run the worker with a kernel that has CONFIG_SECCOMP_FILTER"):
        open_sandbox(parse_sandbox("bwrap")).check()


def test_check_says_that_there_is_no_filter_for_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "filter" not in open_sandbox(parse_sandbox("bwrap")).check()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "without a filter of system calls on riscv64" in open_sandbox(parse_sandbox("bwrap")).check()


def test_the_program_that_is_found_is_the_one_that_runs(world: World) -> None:
    found = open_sandbox(parse_sandbox("bwrap")).find_program("sh")
    assert found == shutil.which("sh")
    assert open_sandbox(parse_sandbox("bwrap")).find_program("no-such-program") is None
    assert world.run("bwrap", "sh", "-c", "command -v sh").stdout.strip() == found


@pytest.mark.parametrize("gateway", [True, False])
def test_a_signal_to_the_process_group_lets_the_program_end_by_itself(gateway: bool, world: World) -> None:
    program = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    wrapped = world.wrap("bwrap", "sh", "-c", program, gateway=gateway)
    with subprocess.Popen(wrapped.argv, env=wrapped.environ, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.read() == b"asked\n"
        assert process.wait(30) == 7


def test_a_failed_start_is_described(world: World) -> None:
    sandbox = open_sandbox(parse_sandbox("bwrap"))
    wrapped = sandbox.wrap(SandboxedCommand(argv=("no-such-program",), environ=os.environ, workspace=world.workspace))
    end = subprocess.run(wrapped.argv, env=wrapped.environ, stderr=subprocess.PIPE, text=True, timeout=60)
    reason = "no-such-program: No such file or directory"
    assert sandbox.describe_start_failure(end.returncode, end.stderr) == reason
    assert sandbox.describe_start_failure(0, "") is None


def test_the_exit_code_names_the_signal(world: World) -> None:
    assert world.run("bwrap", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL
