"""A program runs in its directory, with its environment and its input, and what it printed is kept."""

import asyncio
import ctypes
import os
import platform
import sys
from pathlib import Path

import pytest

from rollout.api_keys import new_key
from rollout.programs.output import HEAD_BYTES, TAIL_BYTES
from rollout.programs.process import EndReason, ProgramCannotStart, ProgramEnd, run_program
from tests.unit.programs.running import (
    Programs,
    find_guardians,
    has_children,
    number_of_programs,
    peak_memory_kib,
    wait_for_file,
    wait_until,
)


@pytest.mark.parametrize(("script", "exit_code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9)])
async def test_a_program_ends_with_its_exit_code_or_signal(
    programs: Programs, machine: str, script: str, exit_code: int
) -> None:
    end = await programs.shell(script)
    assert (end.reason, end.exit_code) == (EndReason.EXITED, exit_code)
    programs.assert_nothing_left()


async def test_stdout_and_stderr_are_kept_in_their_order_for_the_user_alone(programs: Programs) -> None:
    end = await programs.shell("echo one; echo two >&2; echo three")
    assert programs.printed() == "one\ntwo\nthree\n"
    assert end.output_bytes == len("one\ntwo\nthree\n")
    assert programs.output.stat().st_mode & 0o777 == 0o600


async def test_a_program_runs_in_its_directory(programs: Programs) -> None:
    await programs.shell("pwd")
    assert programs.printed() == f"{programs.workspace.work}\n"


@pytest.mark.parametrize("stdin", ["", "a question\n", "ä question " * 100_000])
async def test_a_program_reads_its_input_to_the_end(programs: Programs, stdin: str) -> None:
    await programs.shell("cat", output_bytes=1 << 30)
    end = await programs.shell("cat > copy", stdin=stdin)
    assert end.exit_code == 0
    assert (programs.workspace.work / "copy").read_text() == stdin


async def test_a_program_that_does_not_read_its_input_ends_normally(programs: Programs) -> None:
    end = await programs.shell("exec <&-; exit 3", stdin="x" * 1_000_000)
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 3)


async def test_a_program_has_exactly_the_given_environment(programs: Programs) -> None:
    environ = {"ONE": "1", "EMPTY": "", "LINES": "a\nb", "BYTES": os.fsdecode(b"\xff\xfe")}
    await run_program(programs.process(sys.executable, "-c", "print(open('/proc/self/environ').read())"))
    await run_program(programs.process("/usr/bin/env", "-0", environ=environ))
    variables = programs.output.read_bytes().rstrip(b"\0").split(b"\0")
    assert sorted(variables) == sorted(os.fsencode(f"{name}={value}") for name, value in environ.items())


async def test_a_program_has_the_default_signals_and_no_other_open_file(programs: Programs) -> None:
    code = (
        "import os, re, signal; status = open('/proc/self/status').read(); "
        "mask = int(re.search('SigIgn:(.*)', status)[1], 16); "
        "print(sorted(number.name for number in signal.Signals if mask >> number - 1 & 1)); "
        "print(sorted(os.listdir('/proc/self/fd')))"
    )
    await programs.python(code)
    assert programs.printed().startswith("['SIGPIPE', 'SIGXFSZ']\n")  # Python itself ignores them
    assert programs.printed().endswith("['0', '1', '2', '3']\n")  # 3 is the directory that is listed


@pytest.mark.parametrize(
    ("file", "mode", "reason"),
    [
        (None, 0, "no such file"),
        ("#!/bin/sh\n", 0o600, "not executable"),
        ("#!/no/interpreter\n", 0o700, "interpreter"),
        ("neither a script nor a program", 0o700, "#!/bin/sh"),
    ],
)
async def test_a_program_that_cannot_start_is_an_error_with_its_name_and_the_reason(
    programs: Programs, file: str | None, mode: int, reason: str
) -> None:
    path = programs.workspace.work / "agent"
    if file is not None:
        path.write_text(file)
        path.chmod(mode)
    with pytest.raises(ProgramCannotStart, match=reason) as raised:
        await run_program(programs.process(str(path)))
    assert str(path) in str(raised.value)
    programs.assert_nothing_left()


async def test_a_program_that_is_not_in_path_is_an_error_that_shows_path(programs: Programs) -> None:
    with pytest.raises(ProgramCannotStart, match="PATH is /no/directory"):
        await run_program(programs.process("my-agent", environ={"PATH": "/no/directory"}))


async def test_a_missing_working_directory_is_an_error_that_names_it(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(ProgramCannotStart, match="no_such_directory"):
        await run_program(programs.process("/bin/true", directory=tmp_path / "no_such_directory"))


async def test_an_argument_that_no_program_can_have_is_an_error(programs: Programs) -> None:
    with pytest.raises(ProgramCannotStart, match="null byte"):
        await run_program(programs.process("/bin/echo", "a\0b"))


async def test_an_output_file_that_cannot_be_written_is_an_error(programs: Programs) -> None:
    programs.output.mkdir()
    with pytest.raises(ProgramCannotStart, match=r"output\.txt"):
        await run_program(programs.process("/bin/true"))


async def test_keys_are_replaced_also_when_they_are_printed_in_pieces(programs: Programs) -> None:
    key = new_key()
    code = (
        "import os, sys, time\nfor c in sys.argv[1]:\n    os.write(1, c.encode())\n    time.sleep(0.002)\nprint(' end')"
    )
    await programs.python(code, f"{key} and {key[:20]}")
    assert programs.printed() == "a-key-of-the-gateway and a-key-of-the-gateway end\n"


async def test_only_the_beginning_and_the_end_of_a_gigabyte_are_kept_in_little_memory(programs: Programs) -> None:
    total = 10**9
    running = asyncio.create_task(
        programs.shell(
            f"echo start; yes | head -c {total}; echo end; touch printed; while [ ! -e go ]; do sleep 0.05; done",
            output_bytes=2 * total,
        )
    )
    await wait_for_file(programs.workspace.work / "printed")
    (guardian,) = find_guardians(os.getpid())
    peak = peak_memory_kib(guardian)
    (programs.workspace.work / "go").touch()
    end = await running
    assert peak < 64 << 10
    assert end.output_bytes == total + len("start\nend\n")
    printed = programs.printed()
    left_out = end.output_bytes - HEAD_BYTES - TAIL_BYTES
    assert printed.startswith("start\ny\n")
    assert f"\n… {left_out:,} bytes are left out …\n" in printed
    assert printed.endswith("y\nend\n")
    assert len(printed) < HEAD_BYTES + TAIL_BYTES + 100


async def test_cleanup_commands_run_when_the_program_has_ended(programs: Programs) -> None:
    done = programs.workspace.home / "done"
    cleanup = (("/no/such/command",), ("/bin/sh", "-c", f"cp {programs.workspace.work}/file {done}"))
    await programs.shell("echo text > file", cleanup=cleanup)
    assert done.read_text() == "text\n"


async def test_many_programs_leave_no_zombie_and_no_open_file(programs: Programs) -> None:
    async def run() -> ProgramEnd:
        return await run_program(programs.process("/bin/true"))

    await run()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(number_of_programs(plain=15, ci=50)):
        await run()
    await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # the event loop closes them soon
    assert not has_children()
    programs.assert_nothing_left()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of the call is not known")
async def test_a_program_has_another_session_keyring_than_the_worker(programs: Programs) -> None:
    number, session = {"x86_64": 250, "aarch64": 219}[platform.machine()], -3
    arguments = (number, 0, session, 0)  # KEYCTL_GET_KEYRING_ID
    ours = ctypes.CDLL(None).syscall(*map(ctypes.c_long, arguments))
    if ours < 0:
        pytest.skip("this kernel offers no keyrings")
    await programs.python(f"import ctypes; print(ctypes.CDLL(None).syscall(*map(ctypes.c_long, {arguments})))")
    assert int(programs.printed()) > 0
    assert int(programs.printed()) != ours
