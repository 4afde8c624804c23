"""The image directory: complete files only, one for each image, and nothing left by killed writers."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rollout.images import AssetError, ImageStore, ImageStoreError, read_asset


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() + ".png"


def test_a_stored_image_is_read_back_by_its_name(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "a" / "images", fsync=True)
    assert store.add(name_of(b"image"), b"image") == 5
    assert read_asset(store.directory, name_of(b"image")) == b"image"
    assert store.url(name_of(b"image")) == (store.directory / name_of(b"image")).as_uri()


def test_the_same_image_is_written_once(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, fsync=False)
    store.add(name_of(b"image"), b"image")
    inode = (tmp_path / name_of(b"image")).stat().st_ino
    assert store.add(name_of(b"image"), b"image") == 0
    assert (tmp_path / name_of(b"image")).stat().st_ino == inode


@pytest.mark.parametrize("obstacle", ["link", "short"])
def test_a_link_or_a_short_file_is_replaced_by_the_image(obstacle: str, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", fsync=False)
    path = store.directory / name_of(b"image")
    if obstacle == "link":
        (tmp_path / "other").write_bytes(b"other")
        path.symlink_to(tmp_path / "other")
    else:
        path.write_bytes(b"ima")
    assert store.add(name_of(b"image"), b"image") == 5
    assert not path.is_symlink()
    assert read_asset(store.directory, name_of(b"image")) == b"image"


def test_a_missing_a_changed_and_a_linked_asset_are_named(tmp_path: Path) -> None:
    name = name_of(b"image")
    with pytest.raises(AssetError, match="missing") as caught:
        read_asset(tmp_path, name)
    assert caught.value.file_name == name
    with pytest.raises(AssetError, match="missing"):
        read_asset(tmp_path / "nowhere", name)
    (tmp_path / name).write_bytes(b"changed")
    with pytest.raises(AssetError, match="no longer have the hash"):
        read_asset(tmp_path, name)
    (tmp_path / name).rename(tmp_path / "other")
    (tmp_path / name).symlink_to("other")
    with pytest.raises(AssetError, match="cannot be read"):
        read_asset(tmp_path, name)


@pytest.mark.parametrize("fails", ["write", "rename", "fsync"])
def test_a_full_disk_is_a_store_error_and_leaves_no_file(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path, fsync=True)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(ImageStoreError, match=r"No space left on device; free disk space"):
        store.add(name_of(b"image"), b"image")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_missing_directory_names_it(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", fsync=False)
    (tmp_path / "images").rmdir()
    with pytest.raises(ImageStoreError, match=str(tmp_path / "images")):
        store.add(name_of(b"image"), b"image")


KILLED_WHILE_WRITING = """
    import os, sys, time
    from pathlib import Path
    from rollout.images import ImageStore

    write = os.write
    def half(fd, data):
        write(fd, bytes(data[:1]))
        print("writing", flush=True)
        time.sleep(60)
    os.write = half
    ImageStore(Path(sys.argv[1]), fsync=False).add("0" * 64 + ".png", b"image")
"""


def test_the_next_store_removes_the_file_of_a_killed_writer(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_WRITING), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"writing\n"
        ImageStore(tmp_path, fsync=False)
        assert len(list(tmp_path.iterdir())) == 1, "the file of a living writer is not removed"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert len(list(tmp_path.iterdir())) == 1
    ImageStore(tmp_path, fsync=False)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_whose_file_was_removed_before_its_lock_writes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path, fsync=False)
    lock = fcntl.flock
    removals = iter([True])

    def remove_before_the_lock(fd: int, operation: int) -> None:
        if next(removals, False):
            monkeypatch.setattr(fcntl, "flock", lock)
            ImageStore(tmp_path, fsync=False)
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before_the_lock)
    store.add(name_of(b"image"), b"image")
    assert [path.name for path in tmp_path.iterdir()] == [name_of(b"image")]


OFFLOADING_ALL = """
    import sys
    from pathlib import Path
    from rollout.images import ImagePolicy, prepare_images

    policy = ImagePolicy(mode="offload", directory=Path(sys.argv[1]))
    images = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
    print("ready", flush=True)
    sys.stdin.readline()
    for data in images:
        prepare_images([{"role": "user", "content": [{"type": "image", "image": data}]}], policy)
"""


def test_two_processes_that_offload_the_same_images_write_one_file_for_each(encode: Any, tmp_path: Path) -> None:
    images, source = tmp_path / "images", tmp_path / "source"
    source.mkdir()
    for seed in range(500):
        (source / f"{seed:03}.jpg").write_bytes(encode("JPEG", seed=seed))
    command = [sys.executable, "-c", textwrap.dedent(OFFLOADING_ALL), str(images), str(source)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
    assert (one.returncode, other.returncode) == (0, 0)
    names = sorted(path.name for path in images.iterdir())
    assert len(names) == 500
    assert all(hashlib.sha256((images / name).read_bytes()).hexdigest() == name[:64] for name in names)
