"""A run whose disk is full. Only root may mount one; the second test replaces the write."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.images import ImagePolicy, ImageStoreError, prepare_images
from tests.unit.cli.in_process import run_cli, set_options


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk; the same error without one is tested below")
def test_a_full_disk_for_images_ends_the_run_with_one_message(
    repository: Path, small_disk: Callable[[str], Path]
) -> None:
    options = set_options("tasks.count=8", f"run.directory={small_disk('64k')}", "queue.url=memory://elsewhere")
    result = run_cli("run", str(repository / "configs" / "color_codeword.yaml"), *options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr


def test_a_write_that_fails_is_a_failure_of_the_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout.environments.color_codeword import ColorCodewordSettings, draw_square

    image = draw_square("red", ColorCodewordSettings(), seed="full")
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ImageStoreError, match="No space left on device") as caught:
        prepare_images(messages, ImagePolicy("offload", tmp_path / "images"))
    assert caught.value.infrastructure
    assert messages[0]["content"][0]["image_url"] == {"url": image}  # type: ignore[index]
