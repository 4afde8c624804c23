"""A trained policy plays on two vLLM servers. Each turn may go to either server, and one of them caches nothing."""

import importlib
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import anyio

from examples.grpo_color_codeword.training import CONFIG
from rollout.trainer import Trajectory, check, open_archive

processes: Any = importlib.import_module("examples.grpo_color_codeword.processes")
train: Any = importlib.import_module("examples.grpo_color_codeword.train")
VLLM = Path(__file__).parents[3] / ".venv-vllm" / "bin" / "vllm"
ROLLOUTS = ("tasks.count=25", "tasks.group_size=8", "tasks.seed=1000")


async def played(checkpoint: Path, runs: Path, engines: Sequence[str]) -> list[Trajectory]:
    """Play two hundred rollouts of tasks that are not in the training."""
    settings = (f"engine.urls={json.dumps(list(engines))}", f"model.path={checkpoint}", f"run.directory={runs}")
    options = [part for setting in (*settings, *ROLLOUTS) for part in ("--set", setting)]
    command = [sys.executable, "-m", "rollout", "run", str(CONFIG), *options, "--json"]
    with anyio.fail_after(900):
        report = json.loads((await anyio.run_process(command)).stdout)
    # Every answer ends at its length limit, and still has a score.
    assert report["status"] == {"ok": 200}
    async with open_archive(Path(report["run_dir"])) as reader:
        return [trajectory async for trajectory in reader]


async def test_a_trained_policy_plays_as_well_on_two_servers_without_affinity(tmp_path: Path) -> None:
    learning, runs = tmp_path / "learning", tmp_path / "runs"
    train.train(train.parse_arguments(["--runs", str(learning), "--target", "0.98"]))
    [checkpoint] = learning.glob("codeword-*/policy")
    with ExitStack() as stack:
        engines = [
            stack.enter_context(processes.vllm_sampler(checkpoint, runs, tmp_path / f"{name}.log", VLLM, *flags))
            for name, flags in (("one", ()), ("other", ("--mm-processor-cache-gb", "0", "--no-enable-prefix-caching")))
        ]
        alone = await played(checkpoint, runs, engines[:1])
        together = await played(checkpoint, runs, engines)
    rewards = [[trajectory.reward or 0.0 for trajectory in found] for found in (alone, together)]
    error = math.sqrt(sum(variance(found) / len(found) for found in rewards))
    means = [fmean(found) for found in rewards]
    print(f"\none server {means[0]:.3f}, two servers {means[1]:.3f}; standard error of the difference {error:.3f}")
    assert [check(trajectory) for trajectory in (*alone, *together) if check(trajectory)] == []
    assert abs(means[0] - means[1]) <= 3 * error
    assert min(means) >= 0.95
