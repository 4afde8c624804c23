"""Links out of a work directory, pipes, sockets and devices are removed before a function reads it."""

import os
import socket
from pathlib import Path

import pytest

from rollout.programs.unsafe_entries import remove_unsafe_entries


def test_links_out_of_the_directory_are_removed_and_others_stay(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (work / "file").write_text("mine")
    (work / "inner" / "same").symlink_to("../file")
    for name, target in {"up": "../../secret", "absolute": "/etc/passwd", "device": "/dev/zero", "root": "/"}.items():
        (work / "inner" / name).symlink_to(target)
    (work / "loop").symlink_to("loop")
    (work / "two").symlink_to("inner/up")
    removed = remove_unsafe_entries(work)
    assert {Path(path).name for path in removed} >= {"up", "absolute", "device", "root", "two"}
    assert (work / "inner" / "same").read_text() == "mine"
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (work / "inner" / "up").is_symlink()


def test_pipes_and_sockets_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("answer.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        assert len(remove_unsafe_entries(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []
