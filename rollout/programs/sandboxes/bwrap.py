"""The sandbox `bwrap`: bubblewrap, with nothing but the system, the workspace and the gateway.

Inside, the system is read-only, home directories of this machine are not visible, and there is no network. A relay
(`rollout.programs.sandboxes.relay`) offers the gateway's unix socket at a port of the sandbox's own loopback. A filter
of system calls refuses what namespaces do not isolate.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from rollout.programs.sandboxes import relay
from rollout.programs.sandboxes.base import (
    Sandbox,
    SandboxedCommand,
    SandboxMissing,
    SandboxOptions,
    WrappedCommand,
)
from rollout.programs.sandboxes.mounts import VisibleFiles
from rollout.programs.sandboxes.system_calls import build_filter
from rollout.programs.workspace import VARIABLE

_GATEWAY_ADDRESS = "127.0.0.1:61080"
"""The port is above those that the system gives to clients, and programs rarely choose it for servers of their own."""
_RELAY = os.path.realpath(relay.__file__)
_PYTHON = os.path.realpath(sys.executable)
_ISOLATION = (
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--cap-drop", "ALL"),
)
_OWN_USERS = (("--unshare-user", "--disable-userns"), ("--unshare-user",), ())
"""From the best to the weakest: an own user namespace without others inside, an own one, none (only for root)."""
_START = f"""
import os, signal, sys
for number in {[int(number) for number in relay.PASSED_SIGNALS]}:
    signal.signal(number, signal.SIG_IGN)
filter, bwrap, *arguments = sys.argv[1:]
if filter:
    end, start = os.pipe()
    os.write(start, bytes.fromhex(filter))
    os.close(start)
    os.set_inheritable(end, True)
    arguments = ["--seccomp", str(end), *arguments]
os.execv(bwrap, [bwrap, *arguments])
"""
"""Starts bubblewrap so that signals to its process group end the program, and not bubblewrap first, which kills it.

Bubblewrap reads the filter of system calls from a pipe. It filters also the first process inside, which a program can
trace; so the relay cannot do it.
"""
_READ_ONLY_PROC = ("sys", "sysrq-trigger", "fs", "acpi", "scsi", "mtrr", "pressure")
"""Files of /proc that root may write without any capability."""
_KEYS_OF_PROC = ("/proc/keys", "/proc/key-users")
"""They name the keys of the worker's user. No process can open what covers them, because devices do not work there."""
_TEMPORARY_BYTES = 1 << 30
"""The limit for each of /tmp, /var/tmp and /dev/shm, which are in memory. The workspace is on the disk."""
_TRIAL_SECONDS = 30


def _check_readable(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"{text!r} is a relative path; write an absolute path, or one that begins with '~/'")
    return str(path)


class BwrapOptions(SandboxOptions):
    """The keys of `environment.sandbox` for `kind: bwrap`."""

    kind: str = "bwrap"
    """The name of the sandbox."""
    read: tuple[Annotated[str, AfterValidator(_check_readable)], ...] = ()
    """Files and directories that programs can read, beside the system and the program itself."""


class BwrapSandbox(Sandbox):
    """Runs programs in namespaces of their own, with bubblewrap."""

    Options = BwrapOptions
    uses_socket: ClassVar[bool] = True
    gateway_address: ClassVar[str | None] = _GATEWAY_ADDRESS
    signals_are_codes: ClassVar[bool] = True
    root_inside: ClassVar[Path | None] = Path("/tmp/program")  # noqa: S108 - it is the /tmp of the sandbox

    def __init__(self, options: SandboxOptions) -> None:
        super().__init__(options)
        assert isinstance(options, BwrapOptions)
        self._read = options.read

    def check(self) -> str:
        """Return the version of bubblewrap, after a program has run in it."""
        bwrap = _find_bwrap()
        for path in self._read:
            if not os.path.exists(path):
                raise SandboxMissing(
                    f"sandbox.read names {path}, which does not exist; correct the path, or remove it from the list"
                )
        self._try(bwrap)
        version = _run(bwrap, "--version").stdout.split()
        described = _describe_user(_own_user(bwrap)) + _describe_filter()
        return f"bwrap {version[-1] if version else '(unknown version)'}{described}"

    def find_program(self, name: str) -> str | None:
        """Return the path of a program on this machine, which is visible inside at the same path."""
        if "/" in name and not name.startswith("/"):
            return name
        return shutil.which(name)

    def wrap(self, command: SandboxedCommand) -> WrappedCommand:
        """Return the command that starts bubblewrap. The variables stay variables, so no argument has the key."""
        workspace, socket = command.workspace, command.gateway_socket
        files = VisibleFiles(hidden=(workspace.root,))
        self._add_files(files, command.read)
        files.add_program(command.argv[0], command.environ)
        mounts = _mounts(files)
        inside = self.directories(workspace)
        for directory, target in zip(workspace.writable, inside.writable, strict=True):
            mounts[target] = ("--bind", str(directory), str(target))
        forward: tuple[str, ...] = ()
        if socket is not None:
            mounts[inside.gateway_directory] = ("--ro-bind", str(socket.parent), str(inside.gateway_directory))
            forward = ("--forward", _GATEWAY_ADDRESS, str(inside.gateway_directory / socket.name))
        bwrap = _find_bwrap()
        return WrappedCommand(
            argv=(
                *(*_start(bwrap), *_in_order(mounts), "--chdir", str(inside.work)),
                *("--unsetenv", VARIABLE),  # bwrap itself keeps it; programs print their variables into prompts
                *("--", _PYTHON, "-I", "-S", _RELAY, *forward, "--", *command.argv),
            ),
            environ=command.environ,
        )

    def describe_start_failure(self, exit_code: int, output: str) -> str | None:
        """Return the last line of bubblewrap or of the relay if it says that the command was not started."""
        line = output.rstrip().rpartition("\n")[2]
        if exit_code == relay.START_FAILED_CODE and line.startswith(relay.START_FAILED):
            return line.removeprefix(relay.START_FAILED)
        return line if exit_code == 1 and line.startswith("bwrap: ") else None

    def _add_files(self, files: VisibleFiles, read: Sequence[Path] = ()) -> None:
        files.add_system()
        for path in (_RELAY, *self._read, *map(str, read)):
            files.add(path)

    def _try(self, bwrap: str) -> None:
        files = VisibleFiles()
        self._add_files(files)
        arguments = (*_start(bwrap), *_in_order(_mounts(files)))
        problem = _problem_of(*arguments, "--", _PYTHON, "-I", "-S", _RELAY, "--", "true")
        if problem is not None:
            raise SandboxMissing(f"bwrap cannot run a program: {problem}. {_advise(problem)}")


def _start(bwrap: str) -> tuple[str, ...]:
    """Return the command of bubblewrap, with all its arguments that are the same for each program."""
    instructions = build_filter() or b""
    return (_PYTHON, "-I", "-S", "-c", _START, instructions.hex(), bwrap, *_own_user(bwrap), *_ISOLATION)


def _mounts(files: VisibleFiles) -> dict[Path, tuple[str, ...]]:
    """Return bubblewrap's arguments for each path inside."""
    mounts: dict[Path, tuple[str, ...]] = {
        Path("/dev"): ("--dev", "/dev"),
        Path("/proc"): ("--proc", "/proc"),
        **{
            Path(path): ("--size", str(_TEMPORARY_BYTES), "--tmpfs", path)
            for path in ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - these are not the directories of this machine
        },
    }
    for keys in filter(os.path.exists, _KEYS_OF_PROC):
        mounts[Path(keys)] = ("--ro-bind", "/dev/null", keys)
    for name in _READ_ONLY_PROC:
        mounts[Path("/proc", name)] = ("--ro-bind-try", f"/proc/{name}", f"/proc/{name}")
    for path, target in files.visible(replaced=frozenset(mounts)):
        mounts[path] = ("--ro-bind", str(path), str(path)) if target is None else ("--symlink", target, str(path))
    return mounts


def _in_order(mounts: Mapping[Path, Sequence[str]]) -> list[str]:
    """Return the arguments so that a directory is mounted before what is inside; at last, make two read-only."""
    order = sorted(mounts, key=lambda path: len(path.parts))
    return [argument for path in order for argument in mounts[path]] + ["--remount-ro", "/dev", "--remount-ro", "/"]


def _find_bwrap() -> str:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxMissing(
            "the command bwrap was not found, which sandbox 'bwrap' needs; install bubblewrap (Debian, Ubuntu: "
            "apt-get install bubblewrap), or choose another sandbox"
        )
    return bwrap


@cache
def _own_user(bwrap: str) -> tuple[str, ...]:
    """Return the strongest arguments for a user namespace that work on this machine."""
    problems = []
    for arguments in _OWN_USERS:
        problem = _problem_of(bwrap, *arguments, *_ISOLATION, "--ro-bind", "/", "/", "--", "true")
        if problem is None:
            return arguments
        problems.append(problem)
    raise SandboxMissing(f"bwrap cannot run a program: {problems[1]}. {_advise(problems[1])}")


def _describe_user(arguments: Sequence[str]) -> str:
    if not arguments:
        return ", without user namespaces: programs run as the user of the worker"
    return "" if "--disable-userns" in arguments else ", in which programs can make user namespaces"


def _describe_filter() -> str:
    if build_filter() is not None:
        return ""
    return f", without a filter of system calls on {platform.machine()}: programs reach kernel keyrings and AF_VSOCK"


def _problem_of(*command: str) -> str | None:
    """Run a command; return None if it succeeds, else what it printed."""
    try:
        result = _run(*command)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    output = " ".join((result.stderr or result.stdout).split())
    return None if result.returncode == 0 else output or f"it ended with code {result.returncode}"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - it is bubblewrap
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TRIAL_SECONDS
    )


def _advise(problem: str) -> str:
    """Return what to do about an error of bubblewrap."""
    if "SECCOMP" in problem:
        return "Run the worker with a kernel that has CONFIG_SECCOMP_FILTER, or choose another sandbox."
    if "Unknown option" in problem:
        return "Install bubblewrap 0.6 or newer."
    if re.search(r"mount proc", problem):
        return (
            "This machine is probably a container that hides parts of /proc. Start that container with "
            "--security-opt systempaths=unconfined, run the worker outside of a container, or choose another sandbox."
        )
    if _read_sysctl("kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            "AppArmor restricts user namespaces, as on Ubuntu 24.04. Add an AppArmor profile for bwrap with the rule "
            "`userns,`, or run `sysctl kernel.apparmor_restrict_unprivileged_userns=0`."
        )
    if _read_sysctl("kernel/unprivileged_userns_clone") == 0:
        return "User namespaces are disabled: run `sysctl kernel.unprivileged_userns_clone=1`."
    if _read_sysctl("user/max_user_namespaces") == 0 or "max_*_namespaces" in problem:
        return "Too few user namespaces are allowed: raise user.max_user_namespaces with `sysctl`."
    return (
        "bwrap needs user namespaces. In a container, allow them (--security-opt seccomp=unconfined with Docker), run "
        "the worker outside of it, or choose another sandbox."
    )


def _read_sysctl(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None
