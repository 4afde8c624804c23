"""Two ranks train the same weights as one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.needs.trl.queues import fill, stats_of, trainer_from

DEADLINE = 120.0
SETTINGS: dict[str, Any] = {"max_steps": 9, "save_steps": 1, "learning_rate": 3.0, "lr_scheduler_type": "constant"}
"""The scripted log-probs are far from those of the model. So the gradients are small, and the steps must be large."""


def run_two_ranks(url: str, checkpoint: Path, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """Train on two ranks; return the report of each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = [str(Path(__file__).with_name("rank.py")), url, str(checkpoint), str(output), json.dumps(settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.terminate()  # torchrun ends its ranks too
    assert process.returncode == 0, printed[-4000:]
    return [json.loads((output / f"report{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_two_ranks_train_the_weights_of_one(checkpoint: Path, tmp_path: Path, loss_type: str) -> None:
    one, two = (f"file://{tmp_path}/{name}?retain=true" for name in ("one", "two"))
    for url in (one, two):
        fill(url, 2, size=3)  # three samples: the second rank has one sample, and a row of padding
    with trainer_from(one, checkpoint, tmp_path / "out1", loss_type=loss_type, **SETTINGS) as trainer:
        trainer.train()
    reports = run_two_ranks(two, checkpoint, tmp_path / "out2", loss_type=loss_type, **SETTINGS)
    assert [report["ranks"] for report in reports] == [2, 2]
    assert [report["published"] for report in reports] == [[0, 1, 2], []]
    names = ("loss", "reward", "num_tokens", "rollout/trained_tokens", "sampling/sampling_logp_difference/mean")
    for name in names:
        expected = [line[name] for line in trainer.state.log_history if name in line]
        assert [line[name] for line in reports[0]["log"] if name in line] == pytest.approx(expected, rel=1e-4)
    assert_close(weights_of(tmp_path / "out2"), weights_of(tmp_path / "out1"), 1e-5)
    with pytest.raises(AssertionError):
        assert_close(load_file(checkpoint / "model.safetensors"), weights_of(tmp_path / "out1"), 1e-3)
    assert stats_of(two).backlog_records == 0
    files = {file.name for file in (tmp_path / "out2" / "checkpoint-2").iterdir()}
    assert files >= {"rng_state_0.pth", "rng_state_1.pth", "rollout_state.json", "trainer_state.json"}


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(output / "checkpoint-2" / "model.safetensors")
    return weights


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=0, atol=tolerance)
