"""The filter of system calls refuses what a sandbox does not isolate, for each machine whose numbers we know."""

import errno
import struct

import pytest

from rollout.programs.sandboxes.system_calls import build_filter

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET = {"x86_64": 41, "aarch64": 198}
REFUSED = {
    "x86_64": (246, 248, 249, 250, 298, 304, 320, 321, 323, 425, 426, 427),
    "aarch64": (104, 217, 218, 219, 241, 265, 280, 282, 294, 425, 426, 427),
}
machines = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def call(machine: str, number: int, domain: int = 0, audit: int | None = None) -> int:
    """Return the error of a system call, as the kernel finds it with the filter; 0 if it is allowed."""
    code = build_filter(machine)
    assert code is not None
    data = struct.pack("<IIQ6Q", number, audit or AUDIT[machine], 0, domain, 0, 0, 0, 0, 0)
    instructions = list(struct.iter_unpack("HBBI", code))
    place, value = 0, 0
    while True:
        operation, if_true, if_false, operand = instructions[place]
        place += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x06:
            assert operand == 0x7FFF0000 or operand >> 16 == 5
            return 0 if operand == 0x7FFF0000 else operand & 0xFFFF
        else:
            holds = {0x15: value == operand, 0x35: value >= operand}[operation]
            place += if_true if holds else if_false


@machines
def test_calls_that_are_not_isolated_are_refused_and_others_are_not(machine: str) -> None:
    refused = {number: call(machine, number, domain=1) for number in range(1000)}
    assert {number: error for number, error in refused.items() if error} == dict.fromkeys(REFUSED[machine], errno.EPERM)


@machines
@pytest.mark.parametrize("pair", [0, 1])
def test_only_sockets_that_namespaces_isolate_are_made(machine: str, pair: int) -> None:
    number = SOCKET[machine] + (12 if machine == "x86_64" else 1) * pair
    errors = {domain: call(machine, number, domain) for domain in range(64)}
    assert [domain for domain, error in errors.items() if error == 0] == [1, 2, 10, 16]
    assert {error for error in errors.values() if error} == {errno.EAFNOSUPPORT}
    assert call(machine, number, (1 << 32) + 40) == errno.EAFNOSUPPORT  # the kernel reads 32 bits
    assert call(machine, number, (1 << 32) + 1) == 0


@machines
def test_calls_of_another_machine_are_refused(machine: str) -> None:
    for audit in (0x40000003, 0x40000028):  # i386 and 32-bit ARM
        assert call(machine, 20, audit=audit) == errno.ENOSYS
    assert call(machine, 0x40000000 + 39) == errno.ENOSYS  # x32


def test_an_unknown_machine_has_no_filter() -> None:
    assert build_filter("riscv64") is None
