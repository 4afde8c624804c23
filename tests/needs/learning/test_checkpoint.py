"""The command that makes the first checkpoint of the policy."""

import sys
from pathlib import Path

import pytest

from examples.grpo_color_codeword.checkpoint import main
from rollout.trainer import Materializer


def test_the_command_makes_a_checkpoint_with_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "policy")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'policy'}: ")
    assert Materializer.from_pretrained(tmp_path / "policy", backend="pil").position_axes == 3


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        assert main([str(tmp_path / name), "--seed", seed]) == 0
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_a_missing_extra_is_named_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([str(tmp_path)]) == 2
