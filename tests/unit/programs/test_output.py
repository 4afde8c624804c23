"""The file of what a program printed has the beginning and the end, and no key."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.api_keys import KeyHider, hide_keys, new_key
from rollout.programs.output import HEAD_BYTES, TAIL_BYTES, OutputFile

KEY = new_key()


@given(
    st.lists(st.sampled_from([KEY, KEY[:15], KEY[:11], KEY[:5], KEY[3:], "s", " ", "0123", "\n"])).map("".join),
    st.integers(1, 60),
)
def test_keys_are_replaced_however_the_text_is_cut(text: str, length: int) -> None:
    data, hider = text.encode(), KeyHider()
    blocks = [data[start : start + length] for start in range(0, len(data), length)]
    assert b"".join([*map(hider.hide, blocks), hider.end()]).decode() == hide_keys(text)


@pytest.mark.parametrize("extra", [-1, 0, 1, 1000, 10 * TAIL_BYTES])
@pytest.mark.parametrize("block_bytes", [1000, 65536, 1 << 30])
def test_what_is_left_out_is_counted(tmp_path: Path, extra: int, block_bytes: int) -> None:
    data = (
        os.urandom((HEAD_BYTES + TAIL_BYTES + extra) // 2).hex().encode().ljust(HEAD_BYTES + TAIL_BYTES + extra, b"x")
    )
    output = OutputFile(str(tmp_path / "output"))
    for start in range(0, len(data), block_bytes):
        output.add(data[start : start + block_bytes])
    assert output.close() is None
    line = f"\n… {extra:,} bytes are left out …\n".encode() if extra > 0 else b""
    assert (tmp_path / "output").read_bytes() == (data[:HEAD_BYTES] + line + data[-TAIL_BYTES:] if extra > 0 else data)
    assert output.total_bytes == len(data)


def test_the_beginning_is_in_the_file_while_the_program_runs(tmp_path: Path) -> None:
    output = OutputFile(str(tmp_path / "output"))
    output.add(b"progress\n" * 100)
    assert (tmp_path / "output").read_text().startswith("progress\n")
    output.close()


def test_an_earlier_output_is_replaced_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a long text of an earlier program")
    output = OutputFile(str(tmp_path / "output"))
    output.add(b"new")
    output.close()
    assert (tmp_path / "output").read_text() == "new"
    (tmp_path / "link").symlink_to(tmp_path / "output")
    with pytest.raises(OSError, match="link"):
        OutputFile(str(tmp_path / "link"))


def test_a_full_disk_is_reported_and_all_bytes_are_counted() -> None:
    output = OutputFile("/dev/full")
    output.add(b"x" * 1000)
    output.add(b"y" * 1000)
    assert output.close() == "No space left on device"
    assert output.total_bytes == 2000
