"""The extra `trainer`, installed once: a real network plays rollouts, and a trainer takes one step on them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs.package.conftest import Distributions
from tests.needs.package.installs import InstalledRollout, install_wheel

_CONFIG = """
environment: {class: "acme_squares:Squares"}
tasks: {count: 2, group_size: 2}
model: {name: tiny, path: tiny, renderer: qwen3-vl}
engine: {sampling: {max_tokens: 8, seed: 0}}
run: {name: squares}
"""

_STEP = """
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from rollout.trainer import BlockingReader, Materializer, batch_of

checkpoint, run = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
materializer = Materializer.from_pretrained(checkpoint, backend="pil")
with BlockingReader(f"file://{run}/trajectories?retain=true") as reader:
    groups = [group for _, group in zip(range(2), reader.groups())]
    batch = batch_of(groups, materializer=materializer)

    def logprobs():
        output = model(**batch.model_inputs())
        logits = batch.without_banned(output.logits).roll(1, dims=1)
        tokens = logits.log_softmax(-1).gather(-1, batch.token_ids[..., None]).squeeze(-1)
        return tokens[batch.mask]

    before = logprobs()
    difference = (before - batch.logprobs[batch.mask]).abs().max().item()
    loss = -before.mean()
    loss.backward()
    optimizer.step()
    after = -logprobs().mean()
    reader.commit()
print(json.dumps({"difference": difference, "before": loss.item(), "after": after.item()}))
"""

_PATCHES = """
from PIL import Image

from rollout.images.processors import image_processor_for, installed_backend

config = {
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 1048576},
}
print(installed_backend())
for backend in ("pil", "torchvision"):
    processor = image_processor_for("qwen_vl", config, backend=backend, pixels="uint8")
    print(processor.process(Image.new("RGB", (96, 64))).patches.dtype)
"""


@pytest.fixture(scope="session")
def with_trainer(
    distributions: Distributions, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> InstalledRollout:
    """The wheel with the extra, installed by pip, whose configuration says where torch's CPU build is."""
    directory = tmp_path_factory.mktemp("trainer")
    installed = install_wheel(directory, Path(sys.executable), distributions.wheel, "newest", hidden=repository)
    torch = next(line for line in (repository / ".ci" / "vllm.txt").read_text().splitlines() if line[:7] == "torch==")
    found_at = shlex.split(os.environ.get("ROLLOUT_VLLM_INSTALL", ""))
    pip = [sys.executable, "-m", "pip", "--python", str(installed.path), "install", "--quiet"]
    subprocess.run([*pip, torch, f"{distributions.wheel}[trainer]", *found_at], check=True, timeout=300)
    # A registry may offer only the CUDA build of torchvision, which does not load with the CPU build of torch.
    (packages,) = installed.path.glob("lib/python3*/site-packages")
    shutil.copy(packages / "rollout" / "serving" / "vllm_shim" / "sitecustomize.py", packages)
    return installed


def test_a_trainer_takes_a_step_on_rollouts_of_a_real_network(with_trainer: InstalledRollout) -> None:
    work = with_trainer.work
    made = with_trainer.run("python", "-m", "rollout.serving.tiny_model", "tiny")
    assert made.returncode == 0, made.stderr
    config, step = work / "squares.yaml", work / "step.py"
    config.write_text(_CONFIG)
    step.write_text(_STEP)
    with with_trainer.serve("transformers", "tiny", "--name", "tiny", "--allow", work) as url:
        options = ("--set", f"engine.urls=[{url}]", "--run", "played", "--json")
        played = with_trainer.run("rollout", "launch", config, *options)
        assert played.returncode == 0, played.stdout + played.stderr
    trained = with_trainer.run("python", step, "tiny", work / "played")
    assert trained.returncode == 0, trained.stderr
    losses = json.loads(trained.stdout.splitlines()[-1])
    assert losses["difference"] < 1e-3
    assert losses["after"] < losses["before"]


def test_both_resize_backends_make_patches(with_trainer: InstalledRollout) -> None:
    made = with_trainer.run("python", "-c", _PATCHES)
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["torchvision", "uint8", "uint8"]
