"""Files of a program are kept by patterns, without keys, and within a limit."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.api_keys import KeyHider, hide_keys, new_key
from rollout.programs.directories import closing, open_child
from rollout.programs.file_patterns import check_pattern, find_files
from rollout.programs.kept_files import keep_files

FILES = ("a.log", "A.LOG", ".hidden.log", "a.txt", "logs/a.log", "logs/old/b.log", "logs/old/c.txt")
BLOCK = 1 << 20


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("12345678")
    return directory


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def names_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.log", [".hidden.log", "a.log"]),
        ("?.txt", ["a.txt"]),
        ("[ab].log", ["a.log"]),
        ("logs/*", ["logs/a.log"]),
        ("logs/*/*.log", ["logs/old/b.log"]),
        ("logs/**", ["logs/a.log", "logs/old/b.log", "logs/old/c.txt"]),
        ("**/*.txt", ["a.txt", "logs/old/c.txt"]),
        ("**/old/**", ["logs/old/b.log", "logs/old/c.txt"]),
        ("logs/**/b.log", ["logs/old/b.log"]),
        ("./a.log", ["a.log"]),
        ("a.log/**", []),
        ("logs", []),
        ("**", sorted(FILES)),
        ("**/**", sorted(FILES)),
    ],
)
def test_a_pattern_finds_its_files(work: Path, pattern: str, found: list[str]) -> None:
    with closing(open_child(work)) as directory:
        assert sorted(str(file.path) for file in find_files(directory, [pattern])) == found


@pytest.mark.parametrize("pattern", ["", ".", "/tmp/*", "../*", "a/../b"])
def test_a_pattern_that_leads_out_of_the_directory_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected the pattern of a path in the work directory"):
        check_pattern(pattern)


def test_files_that_match_a_pattern_are_kept(work: Path, kept: Path) -> None:
    assert keep_files(work, kept, ["*.log", "logs/**/*.txt"], max_bytes=1000) is None
    assert names_in(kept) == [".hidden.log", "a.log", "logs/old/c.txt"]
    assert (kept / "a.log").read_text() == "12345678"


def test_a_file_that_does_not_fit_is_left_out_and_named(work: Path, kept: Path) -> None:
    (work / "a.log").write_text("x" * 100)
    left_out = keep_files(work, kept, ["*"], max_bytes=20)
    assert names_in(kept) == [".hidden.log", "A.LOG"]
    assert left_out == "these files were not kept: 'a.log', 'a.txt' (the limit is 20 bytes and 10,000 files)."


def test_many_files_are_left_out_with_a_short_sentence(work: Path, kept: Path) -> None:
    for number in range(100):
        (work / f"{number}.txt").write_text("x")
    left_out = keep_files(work, kept, ["[0-9]*.txt"], max_bytes=0)
    assert left_out is not None
    assert " and 95 more (the limit" in left_out
    assert not kept.exists()


def test_the_number_of_files_is_limited(work: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.programs.kept_files._MAX_FILES", 2)
    assert keep_files(work, kept, ["**"], max_bytes=1000) is not None
    assert len(names_in(kept)) == 2


def test_links_pipes_and_sockets_are_not_kept(work: Path, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.log").write_text("secret")
    (work / "link.log").symlink_to(tmp_path / "secret.log")
    (work / "up").symlink_to(tmp_path)
    os.mkfifo(work / "pipe.log")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(work / "socket.log"))
    assert keep_files(work, kept, ["**"], max_bytes=1000) is None
    assert names_in(kept) == sorted(FILES)


def test_a_work_directory_that_is_a_link_is_not_followed(work: Path, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "replaced").symlink_to(work)
    assert keep_files(tmp_path / "replaced", kept, ["**"], max_bytes=1000) is not None
    assert keep_files(tmp_path / "missing", kept, ["**"], max_bytes=1000) is not None
    assert not kept.exists()


def test_a_very_deep_tree_is_searched_to_a_limit(work: Path, kept: Path) -> None:
    deep = work / "/".join("d" * 150)
    deep.mkdir(parents=True)
    (deep / "deep.log").write_text("")
    assert keep_files(work, kept, ["**/*.log"], max_bytes=1000) is None
    assert names_in(kept) == [".hidden.log", "a.log", "logs/a.log", "logs/old/b.log"]


def test_a_key_is_replaced_also_between_two_blocks_and_in_names(work: Path, kept: Path) -> None:
    key = new_key()
    (work / f"{key}.log").write_text("")
    for shift in (1, 10, 11, 12, 42, 43):
        (work / f"{shift}.log").write_text("x" * (BLOCK - shift) + key + "y")
    (work / key).mkdir()
    (work / key / "env.log").write_bytes(b"\xff" + key.encode() + b"\0")
    assert keep_files(work, kept, ["**/*.log"], max_bytes=20 * BLOCK) is None
    assert (kept / "a-key-of-the-gateway" / "env.log").read_bytes() == b"\xffa-key-of-the-gateway\0"
    assert (kept / "42.log").read_text() == "x" * (BLOCK - 42) + "a-key-of-the-gatewayy"
    assert "a-key-of-the-gateway.log" in names_in(kept)
    for name in names_in(kept):
        assert key not in name
        assert key.encode() not in (kept / name).read_bytes()


def test_a_key_in_the_name_of_a_file_is_not_in_the_sentence(work: Path, kept: Path) -> None:
    key = new_key()
    (work / key).write_text("x")
    left_out = keep_files(work, kept, ["sk-*"], max_bytes=0)
    assert left_out is not None
    assert key not in left_out


PIECES = st.lists(
    st.sampled_from(
        ["sk-rollout-", "sk-", "rollout-", "0123", "a" * 32, "f", "x", "é", "\n", new_key(), new_key()[:17]]
    )
)


@given(PIECES, st.integers(1, 60))
def test_blocks_of_any_size_are_hidden_as_the_whole_text(pieces: list[str], size: int) -> None:
    data = "".join(pieces).encode()
    hider = KeyHider()
    hidden = b"".join(hider.hide(data[start : start + size]) for start in range(0, len(data), size)) + hider.end()
    assert hidden.decode() == hide_keys(data.decode())
