"""A step of the FSDP example has the same gradients, however the samples are distributed over the ranks."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollout.environments.color_codeword import ColorCodeword
from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.testing import embedded_policy, play
from rollout.trainer import TrainingSample, samples
from tests.needs.learning import sharded_step

torch: Any = importlib.import_module("torch")
TIMEOUT = 120.0


@pytest.fixture
async def played(tmp_path: Path) -> list[TrainingSample]:
    """Two samples with two images and three images."""
    async with embedded_policy(tmp_path) as policy:
        trajectories = [
            (await play(ColorCodeword, {"codeword": codeword}, policy=policy)).trajectory
            for codeword in (["red", "blue"], ["green", "red", "yellow"])
        ]
    return [sample for trajectory in trajectories for sample in samples(trajectory)]


def test_the_gradients_do_not_depend_on_the_ranks_of_the_samples(
    played: list[TrainingSample], repository: Path, tmp_path: Path
) -> None:
    given, checkpoint = tmp_path / "samples.pickle", tmp_path / "checkpoint"
    make_checkpoint(checkpoint, "qwen3-vl")
    given.write_bytes(pickle.dumps(played))

    def gradients(ranks: int, *steps: str) -> list[dict[str, Any]]:
        result = tmp_path / f"{ranks}.pt"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        program = [sharded_step.__file__, str(given), str(checkpoint), str(result), *steps]
        subprocess.run([*launcher, *program], cwd=repository, timeout=TIMEOUT, check=True)
        loaded: list[dict[str, Any]] = torch.load(result)
        return loaded

    [alone] = gradients(1, "00")
    assert all(gradient.abs().max() > 0 for name, gradient in alone.items() if "visual.merger" in name)
    # The second rank has no sample and no image in the last case, and must not wait for ever.
    for sharded in gradients(2, "01", "00"):
        for name, gradient in sharded.items():
            assert torch.allclose(gradient, alone[name], atol=1e-5), name
