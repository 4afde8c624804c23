"""Stored images are counted, verified, and removed if no record refers to them."""

import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rollout.images import ImagePolicy, ImageStoreError, prepare_images
from rollout.rundir.assets import RunHeldError, asset_stats, collect_garbage, hold_run_lock, verify_assets

HOUR = 3600.0


def encode(kind: str, color: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (12, 8), color).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run with three images, two hours old, and a file that is not an image."""
    policy = ImagePolicy(mode="offload", directory=tmp_path / "assets" / "images")
    images = [encode("PNG", "red"), encode("JPEG", "red"), encode("PNG", "blue")]
    prepare_images([{"role": "user", "content": [{"type": "image", "image": data} for data in images]}], policy)
    for path in policy.directory.iterdir():
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    (policy.directory / "notes.txt").write_text("not an asset")
    return tmp_path


def assets_of(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "assets" / "images").iterdir() if path.name != "notes.txt")


def test_stats_count_images_and_other_files_separately(run: Path) -> None:
    stats = asset_stats(run)
    sizes = [(run / "assets" / "images" / name).stat().st_size for name in assets_of(run)]
    assert (stats.files, stats.n_bytes, stats.foreign) == (3, sum(sizes), 1)
    assert stats.by_extension == {".png": 2, ".jpg": 1}


def test_verify_names_a_changed_image(run: Path) -> None:
    assert verify_assets(run).problems == ()
    changed = assets_of(run)[1]
    (run / "assets" / "images" / changed).write_bytes(b"changed")
    report = verify_assets(run)
    assert report.checked == 3
    assert [problem.file_name for problem in report.problems] == [changed]


def test_images_without_a_reference_are_removed(run: Path) -> None:
    kept, *garbage = assets_of(run)
    sizes = [(run / "assets" / "images" / name).stat().st_size for name in garbage]
    report = collect_garbage(run, {kept}, grace_seconds=HOUR, dry_run=False)
    assert list(report.removed) == garbage
    assert (report.bytes_removed, report.kept_referenced, report.kept_young) == (sum(sizes), 1, 0)
    assert assets_of(run) == [kept]
    assert (run / "assets" / "images" / "notes.txt").exists()


def test_an_image_that_is_younger_than_the_grace_time_is_kept(run: Path) -> None:
    young = assets_of(run)[0]
    os.utime(run / "assets" / "images" / young)
    report = collect_garbage(run, (), grace_seconds=HOUR, dry_run=False)
    assert (len(report.removed), report.kept_young) == (2, 1)
    assert assets_of(run) == [young]


def test_a_dry_run_removes_nothing(run: Path) -> None:
    before = assets_of(run)
    report = collect_garbage(run, (), grace_seconds=HOUR, dry_run=True)
    assert list(report.removed) == before
    assert report.dry_run
    assert assets_of(run) == before


def test_no_image_is_removed_while_a_process_uses_the_run(run: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rollout.rundir.assets import hold_run_lock\n"
        "with hold_run_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with hold_run_lock(run), pytest.raises(RunHeldError, match="still works in it"):
            collect_garbage(run, (), grace_seconds=0, dry_run=True)
        holder.stdin.write("\n")
    assert len(assets_of(run)) == 3
    assert len(collect_garbage(run, (), grace_seconds=0, dry_run=True).removed) == 3


def test_a_run_does_not_start_while_its_images_are_removed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[RunHeldError] = []

    def start_a_run(path: str) -> None:
        with pytest.raises(RunHeldError, match="garbage is being collected") as caught, hold_run_lock(run):
            pass
        refused.append(caught.value)

    monkeypatch.setattr(os, "unlink", start_a_run)
    collect_garbage(run, (), grace_seconds=HOUR, dry_run=False)
    assert len(refused) == 3


@pytest.mark.parametrize("ask", [asset_stats, verify_assets])
def test_a_directory_without_images_is_refused(ask: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageStoreError, match="Use the directory of a run"):
        ask(tmp_path)


def test_a_missing_directory_of_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageStoreError, match="cannot be locked"):
        collect_garbage(tmp_path / "missing", (), grace_seconds=0, dry_run=True)
