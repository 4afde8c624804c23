"""No name leads out of the server's directory, whatever links are in it."""

import os
from pathlib import Path

import pytest
from rollout_vllm.errors import InvalidImageRef, MaterialisationFailed  # type: ignore[import-not-found]
from rollout_vllm.files import ImageFiles  # type: ignore[import-not-found]

MOST = 1000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "allowed"
    found.mkdir()
    return found


def read(directory: Path, name: str = "a.png", run_id: str = "run-1") -> bytes:
    data: bytes = ImageFiles(str(directory)).read(run_id, name, MOST)
    return data


@pytest.mark.parametrize(
    "below", [".", "assets/images", "run-1", "run-1/assets/images", "runs/run-1/assets/images", "a/b/run-1"]
)
def test_a_file_is_found_in_and_below_the_directory_of_images_of_a_run_or_of_runs(directory: Path, below: str) -> None:
    (directory / "c" / "d").mkdir(parents=True)
    (directory / below).mkdir(parents=True, exist_ok=True)
    (directory / below / "a.png").write_bytes(b"picture")
    assert read(directory) == b"picture"


@pytest.mark.parametrize(
    "below", ["elsewhere", "run-2/assets/images", "run-1/images", "a/b/c/run-1", "a/assets/images"]
)
def test_a_file_elsewhere_is_not_found(directory: Path, below: str) -> None:
    (directory / below).mkdir(parents=True)
    (directory / below / "a.png").write_bytes(b"picture")
    with pytest.raises(InvalidImageRef, match="no file"):
        read(directory)


@pytest.mark.parametrize("name", [".", ".."])
def test_dots_are_refused_as_names(directory: Path, name: str) -> None:
    (directory.parent / "assets" / "images").mkdir(parents=True)
    (directory.parent / "assets" / "images" / "a.png").write_bytes(b"secret")
    with pytest.raises(InvalidImageRef):
        read(directory, name=name)
    with pytest.raises(InvalidImageRef):
        read(directory, run_id=name)


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_is_not_followed_wherever_it_leads(directory: Path, inside: bool) -> None:
    target = (directory if inside else directory.parent) / "target.png"
    target.write_bytes(b"secret")
    (directory / "a.png").symlink_to(target)
    with pytest.raises(InvalidImageRef, match="link"):
        read(directory)


@pytest.mark.parametrize(
    "step", ["assets", "assets/images", "run-1", "run-1/assets", "run-1/assets/images", "runs/run-1"]
)
def test_a_link_on_the_path_is_not_followed(directory: Path, step: str) -> None:
    outside = directory.parent / "outside"
    for below in (".", "images", "assets/images"):
        (outside / below).mkdir(parents=True, exist_ok=True)
        (outside / below / "a.png").write_bytes(b"secret")
    (directory / step).parent.mkdir(parents=True, exist_ok=True)
    (directory / step).symlink_to(outside)
    with pytest.raises(InvalidImageRef, match="link"):
        read(directory)


def test_a_run_behind_a_link_is_not_found(directory: Path) -> None:
    outside = directory.parent / "outside" / "run-1"
    outside.mkdir(parents=True)
    (outside / "a.png").write_bytes(b"secret")
    (directory / "runs").symlink_to(outside.parent)
    with pytest.raises(InvalidImageRef, match="no file"):
        read(directory)


def test_a_run_that_moved_is_found_again(directory: Path) -> None:
    files = ImageFiles(str(directory))
    old, new = directory / "run-1", directory / "archive" / "run-1"
    for place in (old, new):
        place.mkdir(parents=True)
        (place / "a.png").write_bytes(b"picture")
        assert files.read("run-1", "a.png", MOST) == b"picture"
        (place / "a.png").unlink()
        place.rmdir()


def test_a_search_visits_a_limited_number_of_directories(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_vllm.files._MAX_VISITED_DIRECTORIES", 5)
    for number in range(10):
        (directory / f"{number}").mkdir()
    with pytest.raises(InvalidImageRef, match="no file"):
        read(directory)


def test_the_directory_itself_may_be_reached_through_a_link(directory: Path) -> None:
    (directory / "a.png").write_bytes(b"picture")
    link = directory.parent / "link"
    link.symlink_to(directory)
    assert read(link) == b"picture"


def test_a_directory_and_a_pipe_are_refused(directory: Path) -> None:
    (directory / "a.png").mkdir()
    with pytest.raises(InvalidImageRef, match="regular"):
        read(directory)
    os.mkfifo(directory / "b.png")
    with pytest.raises(InvalidImageRef, match="regular"):
        read(directory, "b.png")


def test_a_file_over_the_limit_is_refused(directory: Path) -> None:
    (directory / "a.png").write_bytes(b"x" * MOST)
    assert len(read(directory)) == MOST
    (directory / "a.png").write_bytes(b"x" * (MOST + 1))
    with pytest.raises(InvalidImageRef, match="more than 1000 bytes"):
        read(directory)


def test_a_name_that_no_file_can_have_is_refused(directory: Path) -> None:
    with pytest.raises(InvalidImageRef):
        read(directory, "a" * 300)


def test_a_missing_directory_is_an_error_of_the_server(directory: Path) -> None:
    directory.rmdir()
    directory.touch()
    with pytest.raises(MaterialisationFailed):
        read(directory)


def test_no_file_stays_open(directory: Path) -> None:
    (directory / "a.png").write_bytes(b"picture")
    (directory / "b.png").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read(directory)
        with pytest.raises(InvalidImageRef):
            read(directory, "b.png")
        with pytest.raises(InvalidImageRef):
            read(directory, "c.png")
    assert len(os.listdir("/proc/self/fd")) == before
