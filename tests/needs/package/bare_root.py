"""Bare roots: directories with a Debian, in which commands run as in a container.

Each command runs as process 1 of its own mount namespace and pid namespace. So the kernel removes its mounts and its
processes, however it ends. The network is that of this machine.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.needs.package.host_access import HostAccess

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--")
_SHELL = ("sh", "-euc")
_ENTER = """
root=$1 user=$2 group=$3 mounts=$4; shift 4
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for file in /etc/resolv.conf /etc/hosts; do
  touch "$root$file"
  mount --bind "$file" "$root$file"
done
while [ "$mounts" -gt 0 ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  shift 2; mounts=$((mounts - 1))
done
as_user="setpriv --reuid=$user --regid=$group --clear-groups --pdeathsig=KILL"
exec chroot "$root" $as_user /usr/bin/env --ignore-environment "$@"
"""
_STOP_TIMEOUT = 60
_MEMORY = "3g"
_CLONE_NEWNS = 0x00020000


class CannotMakeRoot(Exception):
    """This machine cannot make a bare root; the message says what is missing, and what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command in a root, with its user, directory and variables, and the paths to mount (there, here).

    It is killed when the process that waits for it is killed.
    """

    words: Sequence[str]
    user: str = "0:0"
    """The numbers of a user and a group."""
    directory: str = "/"
    variables: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)

    def in_root(self, root: Path) -> list[str]:
        mounts = [str(path) for there, here in self.mounts.items() for path in (here, there)]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return [
            *(*_NAMESPACES, *_SHELL, _ENTER, "enter", str(root), *self.user.split(":"), str(len(self.mounts)), *mounts),
            *(f"--chdir={self.directory}", *variables, *self.words),
        ]


@contextmanager
def mounted_memory(directory: Path) -> Iterator[None]:
    """Keep a directory in memory, which is faster than a disk, until this process ends.

    Raises:
        CannotMakeRoot: this process is not root, or it may not mount.
    """
    if os.geteuid() != 0:
        raise CannotMakeRoot("Only root can make a bare root: run these tests as root, or start a Docker daemon.")
    # No other process has this mount, so the kernel removes it even if this process is killed.
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        raise CannotMakeRoot("This machine cannot make a mount namespace: run these tests with CAP_SYS_ADMIN.")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=_STOP_TIMEOUT)
    options = ("-t", "tmpfs", "-o", f"mode=755,size={_MEMORY}")
    subprocess.run(["mount", *options, "tmpfs", str(directory)], check=True, timeout=_STOP_TIMEOUT)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=_STOP_TIMEOUT)


def make_debian(root: Path, suite: str, access: HostAccess) -> None:
    """Make a minimal Debian of this suite, without the downloaded packages.

    Raises:
        CannotMakeRoot: debootstrap is not installed, or it failed.
    """
    if shutil.which("debootstrap") is None:
        raise CannotMakeRoot("debootstrap is not installed: run apt-get install debootstrap, or start a Docker daemon.")
    options = ("--variant=minbase", suite, str(root), *([access.mirror] if access.mirror else []))
    made = subprocess.run(
        [*_NAMESPACES, "debootstrap", *options],
        env=os.environ | access.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    if made.returncode != 0:
        raise CannotMakeRoot(f"debootstrap of {suite} failed:\n{made.stdout[-2000:]}")
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()


def run_in_root(root: Path, command: Command, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(command.in_root(root), capture_output=True, text=True, timeout=timeout, check=False)


@contextmanager
def start_in_root(root: Path, command: Command) -> "Iterator[FirstProcess]":
    """Start a command, and kill it at the end."""
    namespace = subprocess.Popen(command.in_root(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield FirstProcess(namespace)
    finally:
        namespace.kill()
        namespace.communicate(timeout=_STOP_TIMEOUT)


@dataclass(frozen=True, slots=True)
class FirstProcess:
    """Process 1 of a pid namespace."""

    _namespace: "subprocess.Popen[str]"
    """`unshare`, which waits for process 1 and ends with its exit code."""

    def ended(self) -> bool:
        return self._namespace.poll() is not None

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM, and return the exit code and what was printed."""
        if not self.ended():
            os.kill(self._pid(), signal.SIGTERM)
        out, _ = self._namespace.communicate(timeout=_STOP_TIMEOUT)
        return self._namespace.returncode, out

    def _pid(self) -> int:
        """Return the pid of process 1 on this machine."""
        waiting = self._namespace.pid
        return int(Path(f"/proc/{waiting}/task/{waiting}/children").read_text())
