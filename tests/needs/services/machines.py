"""Several machines on one: network namespaces, connected by a bridge from which each can be cut off.

The packets from and to a machine that is cut off are dropped silently, as if a switch had died.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_BLOCKED, _FORWARDING = "0", "3"


@dataclass
class Machine:
    """A network namespace with one address."""

    name: str
    address: str
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a process on this machine; its pid is that of the command."""
        whole = ["ip", "netns", "exec", self.name, *command]
        process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def ask(self, *command: str) -> str:
        """Run a command on this machine, and return what it prints, even if it fails."""
        whole = ["ip", "netns", "exec", self.name, *command]
        return subprocess.run(whole, capture_output=True, text=True, timeout=30, check=False).stdout

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@dataclass
class Network:
    """The machines, and `hub`, which connects them."""

    hub: Machine
    machines: tuple[Machine, ...]

    def cut(self, machine: Machine) -> None:
        """Drop all packets from and to this machine until `mend`."""
        self._port(machine, _BLOCKED)

    def mend(self, machine: Machine) -> None:
        self._port(machine, _FORWARDING)

    def _port(self, machine: Machine, state: str) -> None:
        _run("bridge", "-n", self.hub.name, "link", "set", "dev", _port_of(machine), "state", state)


@contextmanager
def network(size: int) -> Iterator[Network]:
    """Make `size` machines; remove them and kill their processes afterwards."""
    if shutil.which("ip") is None:
        pytest.fail("the machines are network namespaces, and `ip` is missing: install iproute2")
    hub = Machine(f"rollout-{os.getpid()}-hub", "198.18.0.1")
    machines = tuple(Machine(f"rollout-{os.getpid()}-{n}", f"198.18.0.{10 + n}") for n in range(size))
    try:
        _run("ip", "netns", "add", hub.name)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"network namespaces need root with CAP_SYS_ADMIN: {error.stderr}")
    try:
        _run("ip", "-n", hub.name, "link", "add", "between", "type", "bridge")
        _run("ip", "-n", hub.name, "addr", "add", f"{hub.address}/24", "dev", "between")
        for device in ("lo", "between"):
            _run("ip", "-n", hub.name, "link", "set", device, "up")
        for machine in machines:
            _join(hub, machine)
        yield Network(hub, machines)
    finally:
        for machine in (*machines, hub):
            machine.kill()
            subprocess.run(["ip", "netns", "delete", machine.name], stderr=subprocess.DEVNULL, check=False)


def _join(hub: Machine, machine: Machine) -> None:
    port = _port_of(machine)
    _run("ip", "netns", "add", machine.name)
    _run("ip", "link", "add", "net", "netns", machine.name, "type", "veth", "peer", "name", port, "netns", hub.name)
    _run("ip", "-n", hub.name, "link", "set", port, "master", "between", "up")
    _run("ip", "-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "net")
    for device in ("lo", "net"):
        _run("ip", "-n", machine.name, "link", "set", device, "up")


def _port_of(machine: Machine) -> str:
    return f"to{machine.address.rpartition('.')[2]}"


def _run(*command: str) -> None:
    words: Sequence[str] = command
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=20, check=True)
