"""A program in bubblewrap reaches the gateway and its workspace, and nothing else. Every way out is tried.

The same attempts are made without a sandbox, where they succeed. So a test cannot pass because an attempt is wrong.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rollout.programs.process import EndReason, ProgramLimits, ProgramProcess, run_program
from rollout.programs.process_tree import find_marked
from rollout.programs.sandboxes import relay
from rollout.programs.sandboxes.base import SandboxedCommand
from rollout.programs.sandboxes.registry import open_sandbox, parse_sandbox
from rollout.programs.workspace import VARIABLE
from tests.needs.agents.sandboxes.conftest import SECRET, WHY_NOT, Machine, World

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"bubblewrap does not work here: {WHY_NOT}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this outside of the sandbox")
ASK_GATEWAY = """
import http.client, os
connection = http.client.HTTPConnection("127.0.0.1", 61080, timeout=30)
connection.request("POST", "/v1/chat/completions", os.urandom(3_000_000))
print(connection.getresponse().read().decode())
"""
ATTEMPTS = {
    "connect to the worker's loopback": "socket.create_connection(('127.0.0.1', port), 5)",
    "connect to the machine's addresses": "[socket.create_connection((address, port), 5) for address in addresses]",
    "exchange datagrams, as DNS does": """
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(2)
u.sendto(b'query', ('127.0.0.1', port)); u.recv(9)""",
    "send datagrams to the machine's addresses": """
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for address in addresses: u.sendto(b'query', (address, port)); u.settimeout(2); u.recv(9)""",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + abstract_name)",
    "connect to a unix socket": "socket.socket(socket.AF_UNIX).connect(path_of_socket)",
    "read a file of the worker's home": "open(secret_file).read()",
    "write a file of the worker's home": "open(secret_file, 'a').close()",
    "signal another process": "os.kill(victim, 0)",
    "trace another process": "assert ctypes.CDLL(None).ptrace(16, victim, None, None) == 0",  # PTRACE_ATTACH
    "read the memory of another process": "open(f'/proc/{victim}/mem', 'rb').close()",
    "read another process's environment": f"""
def environ(path):
    try:
        return open(path, errors='replace').read()
    except OSError:
        return ''
assert any({SECRET!r} in environ(path) for path in glob.glob('/proc/[0-9]*/environ'))""",
    "list the sockets of services": "os.listdir('/run')",
}
ATTEMPTS_OF_ROOT = {
    "read /etc/shadow": "open('/etc/shadow').read()",
    "make the file of a disk": "os.mknod('disk', 0o60600, os.makedev(7, 0)); os.remove('disk')",
    "write settings of the kernel": "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
    "chroot": "os.chroot('/')",
    "give a file to another user": "open('given', 'w').close(); os.chown('given', 1234, 1234)",
}
NAMES = """
import ctypes, glob, os, socket, sys
port, abstract_name, path_of_socket, secret_file, victim = sys.argv[1:6]
port, victim, addresses = int(port), int(victim), sys.argv[6:]
"""


def attempt(world: World, kind: str, code: str, machine: Machine) -> str:
    """Return 'reached', or the error with which an attempt fails."""
    tried = "try:\n" + textwrap.indent(code.strip(), "    ")
    program = f"{NAMES}\n{tried}\nexcept Exception as error:\n    print(repr(error))\nelse:\n    print('reached')"
    arguments = (machine.port, machine.abstract_name, machine.socket, machine.secret_file, machine.victim)
    return world.play(kind, program, *arguments, *machine.addresses).strip()


@pytest.mark.parametrize("what", [*ATTEMPTS, *(pytest.param(name, marks=needs_root) for name in ATTEMPTS_OF_ROOT)])
def test_a_program_cannot(what: str, world: World, machine: Machine) -> None:
    code = {**ATTEMPTS, **ATTEMPTS_OF_ROOT}[what]
    assert attempt(world, "none", code, machine) == "reached"
    assert attempt(world, "bwrap", code, machine) != "reached"


def test_a_program_reaches_the_gateway_at_once(world: World) -> None:
    answer = world.play("bwrap", ASK_GATEWAY)
    assert answer == '{"path": "/v1/chat/completions", "bytes": 3000000}\n'


def test_a_score_command_does_not_reach_the_gateway(world: World) -> None:
    end = world.run("bwrap", sys.executable, "-c", ASK_GATEWAY, gateway=False)
    assert "Connection refused" in end.stderr
    find = f"import os; print(os.path.exists({str(world.inside.gateway_socket)!r}))"
    assert world.play("bwrap", find, gateway=False) == "False\n"
    assert world.play("bwrap", find) == "True\n"


def test_loopback_is_the_only_network(world: World) -> None:
    assert world.play("bwrap", "import socket; print([name for _, name in socket.if_nameindex()])") == "['lo']\n"


def test_work_home_and_temporary_files_are_written(world: World) -> None:
    workspace = world.workspace
    command = (
        "echo 1 > file && echo 2 > $HOME/file && echo 3 > $TMPDIR/file && echo 4 > /tmp/file && cat /tmp/file && pwd"
    )
    assert world.run("bwrap", "sh", "-c", command).stdout == f"4\n{world.inside.work}\n"
    kept = [(directory / "file").read_text() for directory in (workspace.work, workspace.home, workspace.tmp)]
    assert kept == ["1\n", "2\n", "3\n"]


def test_no_other_place_is_written(world: World) -> None:
    name = f"{world.workspace.root.name}-file"
    home = str(Path.home())
    real = (sys.prefix, sys.base_prefix, "/usr", "/usr/local/bin", "/etc", "/opt", "/", home, "/var", "/home", "/dev")
    own = ("/tmp", "/var/tmp", "/dev/shm", str(world.workspace.root))
    write = """
import os, sys
for directory in sys.argv[2:]:
    try:
        os.makedirs(directory, exist_ok=True)
        open(f"{directory}/{sys.argv[1]}", "x").close()
        print(directory)
    except OSError:
        pass
"""
    assert world.play("bwrap", write, name, *real, *own).split() == list(own)
    assert [place for place in (*real, *own) if Path(place, name).exists()] == []


def test_bigger_temporary_files_than_the_limit_are_refused(world: World) -> None:
    end = world.run("bwrap", "sh", "-c", "truncate -s 2G /tmp/sparse && fallocate -l 1100M /tmp/file")
    assert "No space left on device" in end.stderr


@needs_root
def test_no_file_of_proc_is_written(world: World) -> None:
    count = """
import os
opened = []
for directory, names, files in os.walk("/proc"):
    if directory == "/proc":
        names[:] = [name for name in names if not name.isdigit() and not name.endswith("self")]
    for file in files:
        try:
            os.close(os.open(f"{directory}/{file}", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue
        opened.append(f"{directory}/{file}")
print(*opened)
"""
    assert "/proc/sys/kernel/core_pattern" in world.play("none", count).split()
    assert world.play("bwrap", count).split() == []


def test_a_link_out_of_the_work_directory_leads_nowhere(world: World, machine: Machine) -> None:
    secret = machine.secret_file
    assert world.run("bwrap", "sh", "-c", f"ln -s {secret} link; cat link").returncode != 0
    assert (world.workspace.work / "link").read_text() == SECRET


@pytest.mark.parametrize("path", [".", "../work", None])
def test_a_command_that_is_a_link_out_of_the_work_directory_shows_nothing(
    path: str | None, world: World, tmp_path: Path
) -> None:
    program, work = tmp_path / "program", world.workspace.work
    program.write_text(f"#!/bin/sh\necho {SECRET}\n")
    program.chmod(0o755)
    command = f"{work if path is None else path}/program"
    world.run("bwrap", "ln", "-s", str(program), "program")
    assert world.run("none", command, gateway=False).stdout == f"{SECRET}\n"
    assert world.run("bwrap", command, gateway=False).returncode == relay.START_FAILED_CODE
    named = world.run("bwrap", "program", gateway=False, environ={"PATH": f"{work}:/usr/bin:/bin"})
    assert named.returncode == relay.START_FAILED_CODE


def test_a_program_has_no_capability_and_gains_none(world: World) -> None:
    status = world.run("bwrap", "cat", "/proc/self/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"


@needs_root
def test_a_set_uid_program_does_not_change_the_user(world: World) -> None:
    program = world.workspace.work / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    assert world.run("none", str(program), "-u").stdout == "65534\n"
    assert world.run("bwrap", str(world.inside.work / "id"), "-u").stdout == "0\n"


@pytest.mark.parametrize("flags", ["CLONE_NEWUSER", "CLONE_NEWNS", "CLONE_NEWNET"])
def test_a_program_makes_no_namespace(flags: str, world: World) -> None:
    value = {"CLONE_NEWUSER": 0x10000000, "CLONE_NEWNS": 0x00020000, "CLONE_NEWNET": 0x40000000}[flags]
    program = "import ctypes, sys; print(ctypes.CDLL(None).unshare(int(sys.argv[1])))"
    if flags == "CLONE_NEWUSER" or os.geteuid() == 0:
        assert world.play("none", program, value) == "0\n"
    assert world.play("bwrap", program, value) == "-1\n"


def test_a_program_changes_no_mount(world: World) -> None:
    mount = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for call in (
    lambda: libc.mount(None, b"/usr", None, 0x1020, None),  # MS_REMOUNT | MS_BIND, without MS_RDONLY
    lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None),
    lambda: libc.umount2(b"/proc/sys", 2),
):
    print(call(), ctypes.get_errno())
"""
    assert world.play("bwrap", mount).split("\n") == ["-1 1", "-1 1", "-1 1", ""]


@pytest.mark.parametrize("ends", ["bwrap", "the parent of bwrap"])
def test_all_processes_end_with(ends: str, world: World) -> None:
    wrapped = world.wrap("bwrap", "sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 1000' & echo ready; sleep 1000")
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"] * (ends != "bwrap")
    with subprocess.Popen([*parent, *wrapped.argv], env=wrapped.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(world.processes.pids()) >= 5
        process.kill()
    world.processes.wait_until_gone(30)


async def test_a_program_in_bwrap_is_ended_at_a_limit(world: World, tmp_path: Path) -> None:
    def process(command: str, **limits: int) -> ProgramProcess:
        wrapped = world.wrap("bwrap", "sh", "-c", command)
        return ProgramProcess(
            argv=wrapped.argv,
            environ=wrapped.environ,
            directory=world.workspace.work,
            workspace=world.workspace,
            output=tmp_path / "output",
            limits=ProgramLimits(**{"seconds": 60, "output_bytes": 1 << 20, **limits}),
        )

    asked = await run_program(
        process("trap 'echo asked > asked; exit 7' TERM; while :; do sleep 0.05; done", seconds=3)
    )
    assert (asked.reason, asked.exit_code) == (EndReason.TIMEOUT, 7)
    assert (world.workspace.work / "asked").exists()
    deaf = await run_program(process("trap '' TERM; setsid sleep 1000 & while :; do sleep 0.05; done", seconds=2))
    assert deaf.reason is EndReason.TIMEOUT
    chatty = await run_program(process("yes", output_bytes=1 << 16))
    assert chatty.reason is EndReason.OUTPUT
    assert world.processes.pids() == []


def test_what_a_program_leaves_behind_ends_with_it(world: World) -> None:
    assert world.run("bwrap", "sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 < /dev/null & exit 4").returncode == 4
    world.processes.wait_until_gone(30)


def test_the_key_is_a_variable_and_no_argument(world: World) -> None:
    environ = {"OPENAI_API_KEY": "a-key-of-an-attempt"}
    assert world.run("bwrap", "sh", "-c", "echo $OPENAI_API_KEY", environ=environ).stdout == "a-key-of-an-attempt\n"
    assert "a-key-of-an-attempt" not in "\0".join(world.wrap("bwrap", "true", environ=environ).argv)


def test_no_variable_of_the_worker_is_visible(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KEY", SECRET)
    assert SECRET not in world.run("bwrap", "sh", "-c", "cat /proc/[0-9]*/environ").stdout
    assert (
        SECRET
        in world.run(
            "none", "sh", "-c", f"cat /proc/{os.getppid()}/environ /proc/self/environ", environ=os.environ
        ).stdout
    )


def test_files_to_read_are_visible_and_not_written(world: World, machine: Machine) -> None:
    read = (machine.secret_file,)
    assert world.run("bwrap", "cat", str(machine.secret_file), read=read).stdout == SECRET
    refused = world.run("bwrap", "sh", "-c", f"echo > {machine.secret_file}", read=read)
    assert "Read-only file system" in refused.stderr


@pytest.mark.parametrize("reads", [True, False])
def test_the_option_read_makes_a_directory_and_links_to_it_visible(reads: bool, world: World, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("found")
    (tmp_path / "link").symlink_to("data")
    options = {"kind": "bwrap", "read": [str(tmp_path / "link")] if reads else []}
    wrapped = open_sandbox(parse_sandbox(options)).wrap(
        SandboxedCommand(
            argv=("cat", f"{tmp_path}/link/file", f"{tmp_path}/data/file"),
            environ={"PATH": os.environ["PATH"]},
            workspace=world.workspace,
        )
    )
    end = subprocess.run(wrapped.argv, env=wrapped.environ, capture_output=True, text=True, timeout=60, check=False)
    assert end.stdout == ("foundfound" if reads else "")


def test_the_root_directory_can_be_read_and_is_not_written(world: World, machine: Machine) -> None:
    assert world.run("bwrap", "cat", str(machine.secret_file), read=(Path("/"),)).stdout == SECRET
    own = f"/tmp/{world.workspace.root.name}.file"
    command = f"echo > {machine.secret_file}; echo 1 > $TMPDIR/file; echo 2 > file; echo 3 > {own}; cat file {own}"
    end = world.run("bwrap", "sh", "-c", command, read=(Path("/"),))
    assert end.stdout.split() == ["2", "3"]
    assert end.stderr.count("Read-only file system") == 1
    assert (world.workspace.tmp / "file").read_text() == "1\n"
    assert not Path(own).exists()


def test_a_program_of_a_virtual_environment_finds_its_interpreter(world: World, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    agent = environment / "bin" / "agent"
    agent.write_text(f"#!{environment}/bin/python\nimport sys\nprint(sys.prefix)\n")
    agent.chmod(0o755)
    link = tmp_path / "links" / "agent"
    link.parent.mkdir()
    link.symlink_to(agent)
    for command in ([str(agent)], [str(link)], [f"{environment}/bin/python", "-c", "import sys; print(sys.prefix)"]):
        assert world.run("bwrap", *command).stdout == f"{environment}\n", command
    path = {"PATH": f"{link.parent}:{os.environ['PATH']}"}
    assert world.run("bwrap", "agent", environ=path).stdout == f"{environment}\n"


def test_the_python_of_the_worker_imports_its_packages(world: World) -> None:
    assert world.play("bwrap", "import pydantic; print(pydantic.__name__)") == "pydantic\n"


def test_a_program_of_a_node_package_finds_the_packages_beside_it(world: World, tmp_path: Path) -> None:
    modules = tmp_path / "project" / "node_modules"
    for directory in (".bin", "agent/bin", "neighbour"):
        (modules / directory).mkdir(parents=True)
    (modules / "neighbour" / "text").write_text("found")
    program = modules / "agent" / "bin" / "agent.sh"
    program.write_text('#!/usr/bin/env sh\ncat "$(dirname "$(readlink -f "$0")")/../../neighbour/text"\n')
    program.chmod(0o755)
    (modules / ".bin" / "agent").symlink_to("../agent/bin/agent.sh")
    assert world.run("bwrap", str(modules / ".bin" / "agent")).stdout == "found"


def test_a_program_in_a_home_does_not_make_the_home_visible(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "agent"
    program.write_text('#!/bin/sh\nls "$(dirname "$0")"\n')
    program.chmod(0o755)
    (tmp_path / "private").write_text(SECRET)
    assert world.run("bwrap", str(program)).stdout == "agent\n"


def test_a_program_does_not_see_the_variable_by_which_its_sandbox_is_found(world: World) -> None:
    code = f"import os, sys; print({VARIABLE!r} in os.environ, flush=True); sys.stdin.read()"
    wrapped = world.wrap("bwrap", sys.executable, "-c", code, environ=world.workspace.mark)
    with subprocess.Popen(
        wrapped.argv, env=wrapped.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "False\n"
        assert process.pid in find_marked(f"{VARIABLE}={world.workspace.root}", None)
        process.communicate()
