"""Templates and files are copied into a work directory, and never through a link that a program has put there."""

import os
import socket
import stat
from pathlib import Path

import pytest

from rollout.programs.workspace import WorkspaceError, copy_tree, write_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "template"
    (directory / "tests" / "deep").mkdir(parents=True)
    (directory / "tests" / "deep" / "test_a.py").write_text("assert True")
    (directory / "run.sh").write_text("#!/bin/sh")
    (directory / "run.sh").chmod(0o755)
    (directory / ".hidden").write_text("h")
    return directory


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "file").write_text("untouched")
    return directory


def content_of(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_modes_times_links_and_hidden_files_are_copied(source: Path, work: Path) -> None:
    (source / "link").symlink_to("tests/deep")
    (source / "dangling").symlink_to("/nowhere")
    (source / "tests").chmod(0o555)
    os.utime(source / "run.sh", ns=(10**18, 10**18))
    copy_tree(source, work)
    assert content_of(work) == content_of(source)
    assert (work / "tests" / "deep" / "test_a.py").read_text() == "assert True"
    assert stat.S_IMODE((work / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((work / "tests").stat().st_mode) == 0o555
    assert (work / "run.sh").stat().st_mtime_ns == 10**18
    assert os.readlink(work / "link") == "tests/deep"
    assert os.readlink(work / "dangling") == "/nowhere"


def test_the_source_replaces_files_and_keeps_the_others(source: Path, work: Path) -> None:
    (work / "tests").mkdir()
    (work / "tests" / "mine").write_text("kept")
    (work / "run.sh").write_text("changed")
    (work / "run.sh").chmod(0)
    (work / ".hidden").mkdir()
    (work / ".hidden" / "file").write_text("")
    copy_tree(source, work)
    copy_tree(source, work)
    assert (work / "run.sh").read_text() == "#!/bin/sh"
    assert (work / ".hidden").read_text() == "h"
    assert (work / "tests" / "mine").read_text() == "kept"


@pytest.mark.parametrize("place", ["tests", "tests/deep", "tests/deep/test_a.py", "run.sh"])
def test_a_link_in_the_target_is_replaced_and_not_followed(source: Path, work: Path, outside: Path, place: str) -> None:
    (work / place).parent.mkdir(parents=True, exist_ok=True)
    (work / place).symlink_to(outside / "file" if place.endswith(("py", "sh")) else outside)
    copy_tree(source, work)
    assert content_of(outside) == ["deep", "file"]
    assert (outside / "file").read_text() == "untouched"
    assert content_of(work) == content_of(source)
    assert not (work / place).is_symlink()


def test_a_target_that_is_a_link_is_replaced(source: Path, work: Path, outside: Path) -> None:
    work.rmdir()
    work.symlink_to(outside)
    copy_tree(source, work)
    assert content_of(outside) == ["deep", "file"]
    assert content_of(work) == content_of(source)


def test_a_hard_link_in_the_target_keeps_what_it_leads_to(source: Path, work: Path, outside: Path) -> None:
    os.link(outside / "file", work / "run.sh")
    copy_tree(source, work)
    write_files({".hidden": "new"}, work)
    os.link(outside / "file", work / "x")
    write_files({"x": "new"}, work)
    assert (outside / "file").read_text() == "untouched"


def test_a_pipe_in_the_target_does_not_block(source: Path, work: Path) -> None:
    os.mkfifo(work / "run.sh")
    os.mkfifo(work / "tests")
    copy_tree(source, work)
    assert content_of(work) == content_of(source)


def test_a_pipe_or_a_socket_in_the_source_is_an_error(source: Path, work: Path) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(WorkspaceError, match=r"template/pipe cannot be copied, because it is a socket, a device or a"):
        copy_tree(source, work)
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "tests" / "socket"))
    with pytest.raises(WorkspaceError, match="template/tests/socket cannot be copied"):
        copy_tree(source, work)


def test_a_source_that_is_no_directory_is_an_error(source: Path, work: Path) -> None:
    for wrong, problem in ((source / "run.sh", "Not a directory"), (source / "missing", "No such file or directory")):
        with pytest.raises(WorkspaceError, match=rf"the directory {wrong} cannot be copied: .*{problem}"):
            copy_tree(wrong, work)


def test_a_directory_is_not_copied_into_itself(source: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot be copied into itself"):
        copy_tree(source, source / "tests" / "deep")


def test_a_source_with_too_many_levels_is_an_error(source: Path, work: Path) -> None:
    (source / "/".join("d" * 150)).mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="more than 100 levels deep"):
        copy_tree(source, work)


def test_strange_names_are_copied(source: Path, work: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"*"):
        (source / os.fsdecode(name)).write_bytes(name)
    copy_tree(source, work)
    assert content_of(work) == content_of(source)
    assert (work / os.fsdecode(b"\xff\xfe")).read_bytes() == b"\xff\xfe"


def test_files_are_written_with_their_directories(work: Path) -> None:
    write_files({"a.txt": "é", "b/c/d.txt": "x", "./b//e": ""}, work)
    assert content_of(work) == ["a.txt", "b", "b/c", "b/c/d.txt", "b/e"]
    assert (work / "a.txt").read_bytes() == "é".encode()


@pytest.mark.parametrize("name", ["", ".", "/etc/x", "../x", "a/../../x", "a/..", "a/", "a\0b"])
def test_a_name_that_leads_out_of_the_directory_is_refused(work: Path, name: str) -> None:
    with pytest.raises(WorkspaceError, match="expected a path below the work directory"):
        write_files({name: "x"}, work)
    assert content_of(work.parent) == ["work"]


@pytest.mark.parametrize("place", ["link", "link/inner", "link/inner/file"])
def test_a_file_is_not_written_through_a_link(work: Path, outside: Path, place: str) -> None:
    (work / "link").symlink_to(outside)
    write_files({place: "x"}, work)
    assert content_of(outside) == ["deep", "file"]
    assert (work / place).read_text() == "x"


@pytest.mark.parametrize(
    ("name", "text", "problem"), [("a", "\ud800", "half of a character"), ("n" * 300, "", "name too long")]
)
def test_a_file_that_cannot_be_written_is_named(work: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(WorkspaceError, match=rf"(?i)^the file '{name[:50]}.*' cannot be written: .*{problem}"):
        write_files({name: text}, work)
