"""Builds the filter of system calls for the sandbox `bwrap`.

Namespaces do not cover kernel keyrings and the sockets of virtual machines (AF_VSOCK). The filter refuses those, and
calls that programs do not need but that reach much of the kernel. It is a program of Linux's seccomp (classic BPF), and
no process inside can remove it.
"""

import errno
import platform
import socket
import struct
import sys
from dataclasses import dataclass

_NUMBER_OFFSET, _MACHINE_OFFSET, _DOMAIN_OFFSET = 0, 4, 16
"""Offsets in `struct seccomp_data`. The domain of a socket is the first argument; the kernel reads 32 bits of it."""
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_X32_BIT = 0x40000000
"""Calls of the x32 ABI have the same machine as others of x86_64, and numbers from here."""
_DOMAINS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)
"""The sockets that namespaces isolate. 16 is AF_NETLINK, with which programs list the interfaces of the network."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """The numbers of one machine.

    Attributes:
        audit: its number in `linux/audit.h`.
        sockets: the calls whose first argument is the domain of a socket.
        refused: the calls that fail.
    """

    audit: int
    sockets: dict[str, int]
    refused: dict[str, int]


_IO_URING = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
"""A ring opens sockets that no filter sees."""
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        sockets={"socket": 41, "socketpair": 53},
        refused={
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "bpf": 321,
            "perf_event_open": 298,
            "userfaultfd": 323,
            "open_by_handle_at": 304,
            "kexec_load": 246,
            "kexec_file_load": 320,
            **_IO_URING,
        },
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        sockets={"socket": 198, "socketpair": 199},
        refused={
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "bpf": 280,
            "perf_event_open": 241,
            "userfaultfd": 282,
            "open_by_handle_at": 265,
            "kexec_load": 104,
            "kexec_file_load": 294,
            **_IO_URING,
        },
    ),
}


def build_filter(machine: str | None = None) -> bytes | None:
    """Return the filter, an array of `struct sock_filter`; None if we know no numbers for the machine.

    Args:
        machine: the name of the machine as `uname -m` says it; None: this machine.
    """
    if machine is None:
        machine = platform.machine() if sys.maxsize > 1 << 32 else ""  # a 32-bit Python makes other calls
    numbers = _MACHINES.get(machine)
    if numbers is None:
        return None
    unknown_call = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    instructions = [
        (_LOAD, 0, 0, _MACHINE_OFFSET),
        (_JUMP_IF_EQUAL, 1, 0, numbers.audit),
        unknown_call,  # a 32-bit call has other numbers
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_IF_AT_LEAST, 0, 1, _X32_BIT),
        unknown_call,
    ]
    for number in numbers.refused.values():
        instructions += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    for number in numbers.sockets.values():
        domains = [(_JUMP_IF_EQUAL, len(_DOMAINS) - place, 0, domain) for place, domain in enumerate(_DOMAINS)]
        refuse = [(_LOAD, 0, 0, _DOMAIN_OFFSET), *domains, (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)]
        instructions += [(_JUMP_IF_EQUAL, 0, len(refuse) + 1, number), *refuse, (_RETURN, 0, 0, _ALLOW)]
    instructions.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
