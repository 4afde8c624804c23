"""A program in bubblewrap makes no system call that reaches what namespaces do not isolate.

The same attempts are made without a sandbox, where they succeed if this kernel offers the call.
"""

import ctypes
import errno
import platform
import sys

import pytest

from tests.needs.agents.sandboxes.conftest import WHY_NOT, Machine, World
from tests.needs.agents.sandboxes.test_bwrap import attempt

_NUMBERS = {"x86_64": (248, 250), "aarch64": (217, 219)}
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=f"bubblewrap does not work here: {WHY_NOT}"),
    pytest.mark.skipif(platform.machine() not in _NUMBERS, reason="there is no filter for this machine"),
]
ADD_KEY, KEYCTL = _NUMBERS.get(platform.machine(), (0, 0))
JOIN_SESSION, SEARCH, SESSION, PROCESS = 1, 10, -3, -2
CALL = """
def call(*arguments):
    arguments = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
"""
FIND_KEY = f"{CALL}\ncall({KEYCTL}, {SEARCH}, {SESSION}, b'user', b'key of a test', 0)"
WRITE_KEY = f"{CALL}\ncall({ADD_KEY}, b'user', b'key of a test', b'text', 4, {SESSION})"
ATTEMPTS = {
    "find a key of the worker": (FIND_KEY, errno.EPERM),
    "write a key": (f"{CALL}\ncall({ADD_KEY}, b'user', b'own key', b'text', 4, {PROCESS})", errno.EPERM),
    "read the names of keys": ("open('/proc/keys').read()", errno.EACCES),
    "make a socket to the hypervisor": ("socket.socket(40)", errno.EAFNOSUPPORT),  # AF_VSOCK
    "make a ring for system calls": (f"{CALL}\ncall(425, 1, ctypes.create_string_buffer(120))", errno.EPERM),
}
"""Each attempt, with the error in bubblewrap."""


@pytest.fixture
def session() -> None:
    """Join a new session keyring, so that the keys of a test are in no other session."""
    if ctypes.CDLL(None).syscall(ctypes.c_long(KEYCTL), ctypes.c_long(JOIN_SESSION), None) < 0:
        pytest.skip("this kernel offers no keyrings")


@pytest.mark.parametrize("what", ATTEMPTS)
def test_a_program_cannot(what: str, world: World, machine: Machine, request: pytest.FixtureRequest) -> None:
    if "key" in what:
        request.getfixturevalue("session")
        assert attempt(world, "none", WRITE_KEY, machine) == "reached"
    code, error = ATTEMPTS[what]
    outside = attempt(world, "none", code, machine)
    if outside != "reached":
        pytest.skip(f"this kernel does not offer it: {outside}")
    assert f"({error}, " in attempt(world, "bwrap", code, machine)


@pytest.mark.usefixtures("session")
def test_a_key_that_a_program_writes_is_not_found_outside(world: World, machine: Machine) -> None:
    attempt(world, "bwrap", WRITE_KEY, machine)
    assert attempt(world, "none", FIND_KEY, machine) != "reached"
    attempt(world, "none", WRITE_KEY, machine)
    assert attempt(world, "none", FIND_KEY, machine) == "reached"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has calls of i386")
def test_a_program_makes_no_call_of_i386(world: World) -> None:
    program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0)
"""
    if world.run("none", sys.executable, "-c", program).stdout != "True\n":
        pytest.skip("this kernel has no calls of i386")
    assert world.play("bwrap", program) == "False\n"


def test_the_first_process_inside_is_filtered_because_a_program_can_trace_it(world: World) -> None:
    assert "Seccomp:\t2\n" in world.run("bwrap", "cat", "/proc/1/status").stdout
