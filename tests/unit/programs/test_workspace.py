"""The directories of one program: they are made, filled and removed, whatever a program has put into them."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from rollout.programs.directories import remove_child
from rollout.programs.workspace import (
    PREFIX,
    VARIABLE,
    Workspace,
    WorkspaceError,
    take_lock,
)

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    made = Workspace.create()
    yield made
    made.remove()


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Run the test without the rights of root."""
    os.seteuid(65534)
    yield
    os.seteuid(0)


def make_deep_tree(top: Path, levels: int, mode: int = 0o700) -> None:
    directory = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("deep", dir_fd=directory)
        child = os.open("deep", os.O_RDONLY, dir_fd=directory)
        os.fchmod(directory, mode)
        os.close(directory)
        directory = child
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)


def test_only_the_user_can_enter_a_workspace(workspace: Workspace) -> None:
    directories = (workspace.root, workspace.work, workspace.home, workspace.tmp, workspace.gateway_directory)
    assert [stat.S_IMODE(directory.stat().st_mode) for directory in directories] == [0o700] * 5
    assert workspace.root.name.startswith(PREFIX)


def test_the_variables_name_directories_of_the_workspace(workspace: Workspace) -> None:
    environ = workspace.environ()
    assert workspace.mark == {VARIABLE: str(workspace.root)}
    assert environ["HOME"] == str(workspace.home)
    assert all(Path(environ[name]) == workspace.tmp for name in ("TMPDIR", "TMP", "TEMP"))
    xdg = [Path(value) for name, value in environ.items() if name.startswith("XDG_")]
    assert len(xdg) == 4
    assert all(workspace.home in path.parents for path in xdg)


def test_a_workspace_is_locked_until_it_is_removed() -> None:
    workspace = Workspace.create()
    assert take_lock(workspace.root) is None
    inherited = os.dup(workspace.lock_fd)
    workspace.lock.close()
    assert take_lock(workspace.root) is None, "a process that inherits the file descriptor holds the lock"
    os.close(inherited)
    lock = take_lock(workspace.root)
    assert lock is not None
    lock.close()
    workspace.remove()
    assert take_lock(workspace.root) is None
    assert not workspace.root.exists()


def test_the_lock_of_a_removed_file_is_not_taken(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workspace.root / "lock"
    workspace.lock.close()
    lock_file = fcntl.flock

    def removed_meanwhile(file: int, operation: int) -> None:
        path.unlink()
        lock_file(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    assert take_lock(workspace.root) is None


def test_a_workspace_can_be_removed_twice() -> None:
    workspace = Workspace.create()
    workspace.remove()
    workspace.remove()
    assert not workspace.root.exists()


def test_a_very_deep_tree_is_removed() -> None:
    workspace = Workspace.create()
    make_deep_tree(workspace.work, 1200)  # more than Python's limit for recursion, and a path of more than 4,096 bytes
    workspace.remove()
    assert not workspace.root.exists()


def test_strange_names_links_sockets_and_pipes_are_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    workspace = Workspace.create()
    (workspace.work / "link").symlink_to(outside)
    (workspace.work / "loop").symlink_to("loop")
    (workspace.work / "-rf").mkdir()
    (workspace.work / "new\nline").write_text("")
    os.mkdir(os.fsencode(workspace.work) + b"/\xff\xfe")
    os.mkfifo(workspace.work / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(workspace.gateway_socket))
    workspace.remove()
    assert not workspace.root.exists()
    assert (outside / "kept").read_text() == "x"


def test_a_root_that_is_a_link_now_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    workspace = Workspace.create()
    moved = workspace.root.rename(tmp_path / "moved")
    workspace.root.symlink_to(tmp_path)
    workspace.remove()
    assert not os.path.lexists(workspace.root)
    assert (tmp_path / "kept").exists()
    assert (moved / "work").exists()


@NEEDS_ROOT
@pytest.mark.usefixtures("as_nobody")
def test_directories_without_access_are_removed() -> None:
    workspace = Workspace.create()
    for name, mode in (("none", 0), ("no-writing", 0o555), ("no-reading", 0o333), ("no-entering", 0o666)):
        inner = workspace.work / name / "inner"
        inner.mkdir(parents=True)
        (inner / "file").write_text("")
        inner.chmod(mode)
        inner.parent.chmod(mode)
    workspace.root.chmod(0)
    workspace.remove()
    assert not workspace.root.exists()


@NEEDS_ROOT
def test_a_file_of_another_user_is_named_and_the_rest_is_removed(as_nobody: None) -> None:
    workspace = Workspace.create()
    (workspace.work / "cache").mkdir()
    (workspace.work / "cache" / "file").write_text("")
    (workspace.work / "other").write_text("")
    os.seteuid(0)
    os.chown(workspace.work / "cache", 0, 0)
    os.seteuid(65534)
    with pytest.raises(WorkspaceError, match=r"work/cache/file: Permission denied; remove .* as the user who owns"):
        workspace.remove()
    left = sorted(str(path.relative_to(workspace.root)) for path in workspace.root.rglob("*"))
    assert left == ["work", "work/cache", "work/cache/file"]
    os.seteuid(0)
    workspace.remove()
    assert not workspace.root.exists()


@NEEDS_ROOT
@pytest.mark.usefixtures("as_nobody")
def test_a_very_deep_tree_without_access_is_removed() -> None:
    workspace = Workspace.create()
    make_deep_tree(workspace.work, 200, mode=0)
    workspace.remove()
    assert not workspace.root.exists()


def test_files_that_vanish_meanwhile_are_no_problem() -> None:
    workspace = Workspace.create()
    for number in range(2000):
        (workspace.work / f"d{number % 20}").mkdir(exist_ok=True)
        (workspace.work / f"d{number % 20}" / f"{number}").write_text("")
    with ThreadPoolExecutor(4) as pool:
        for removal in [pool.submit(workspace.remove) for _ in range(4)]:
            removal.result()
    assert not workspace.root.exists()


def test_no_process_takes_a_workspace_for_abandoned_while_it_is_removed() -> None:
    workspace = Workspace.create()
    make_deep_tree(workspace.work, 100)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(workspace.remove)
        while not removal.done():
            if (lock := take_lock(workspace.root)) is not None:
                with suppress(FileNotFoundError):
                    assert set(os.listdir(workspace.root)) <= {"lock"}
                lock.close()
        removal.result()
    assert not workspace.root.exists()


def test_a_program_that_still_writes_causes_no_endless_loop() -> None:
    workspace = Workspace.create()
    script = f"import os\nwhile True: os.makedirs('{workspace.work}/a/b/c', exist_ok=True)"
    writer = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        while not (workspace.work / "a").exists():
            time.sleep(0.01)
        with suppress(OSError):  # it depends on the time whether a removal succeeds
            remove_child(workspace.work)
    finally:
        writer.kill()
        writer.wait()
    workspace.remove()
    assert not workspace.root.exists()


@NEEDS_ROOT
def test_no_directory_is_left_when_the_disk_is_full(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("64k,nr_inodes=5")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(WorkspaceError, match=r"cannot be created: .*/tmp: No space left on device; make room there"):
        Workspace.create()
    assert list(disk.iterdir()) == []


def test_a_missing_directory_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(WorkspaceError, match=rf"{tmp_path}/missing.*No such file or directory; .* set TMPDIR"):
        Workspace.create()
