"""`rollout doctor --forward` with an engine that computes a network, and with a text-only checkpoint."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from renderers_adapter.tokens import ExpandedIds
from rollout.config.load import load_config
from rollout.doctor.engines.checking import check_engines
from rollout.doctor.engines.forward.conversation import PlayedConversation
from rollout.doctor.engines.forward.measuring import measure
from rollout.doctor.engines.forward.network import CheckpointNetwork
from rollout.doctor.engines.forward.precision import TOLERANCES
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.trainer import TrainingSample

torch: Any = importlib.import_module("torch")
np: Any = importlib.import_module("numpy")


@pytest.fixture
def forward(repository: Path, tmp_path: Path, world: Callable[..., Any]) -> Callable[[Path], Any]:
    """Checks an engine that serves the usual checkpoint; returns the result of the last check."""

    async def check(model_path: Path) -> CheckResult:
        keys = {
            "engine.urls": f'["{str(world().client.base_url).rstrip("/")}"]',
            "model.path": str(model_path),
            "model.name": "tiny",
            "model.renderer": "qwen3-vl",
            "images.mode": "inline",  # the engine may read no files
            "run.directory": str(tmp_path / "runs"),
        }
        config = load_config(
            repository / "configs" / "color_codeword.yaml", [f"{key}={value}" for key, value in keys.items()]
        )
        return [result async for result in check_engines(config, forward=True)][-1]

    return check


async def test_the_backend_of_our_own_engine_is_named(forward: Any, checkpoint: Callable[..., Path]) -> None:
    result = await forward(checkpoint())
    assert result.status is CheckStatus.OK, result.message
    assert 'so train with Materializer.from_pretrained(checkpoint, backend="pil")' in result.message
    assert (
        "after the ban of pad tokens" in result.message
    )  # found by the log-probs, because this engine does not say it


async def test_other_constants_of_normalisation_are_found(
    forward: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint(), tmp_path / "other")
    path = other / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    result = await forward(other)
    assert result.status is CheckStatus.BAD, result.message
    assert "With image_mean [0.5, 0.5, 0.5] and image_std [0.5, 0.5, 0.5]" in result.message


async def test_a_checkpoint_in_bfloat16_is_compared_in_bfloat16(
    forward: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    coarse = shutil.copytree(checkpoint(), tmp_path / "coarse")
    path = coarse / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    result = await forward(coarse)
    assert result.status is CheckStatus.OK, result.message
    assert "the checkpoint is bfloat16" in result.message
    assert "the line `pixels` names the engine's" in result.message


async def test_the_name_of_a_pushed_version_excuses_other_weights(
    forward: Any, checkpoint: Callable[..., Path]
) -> None:
    result = await forward(checkpoint(seed=1))
    assert result.status is CheckStatus.UNKNOWN
    assert "pushed version 1" in result.message


async def test_a_checkpoint_without_weights_is_not_compared(
    forward: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    empty = shutil.copytree(checkpoint(), tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    result = await forward(empty)
    assert result.status is CheckStatus.UNKNOWN
    assert "cannot load" in result.message


def test_a_missing_weight_is_named(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(checkpoint(), tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed, match=r"lacks 1 weights .* such as lm_head\.weight"):
        CheckpointNetwork(damaged, dtype="float32", has_images=True)


def test_an_unknown_architecture_is_not_compared(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    unknown = shutil.copytree(checkpoint(), tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "nobody_knows_it"}))
    with pytest.raises(CheckNotMade, match="nobody_knows_it"):
        CheckpointNetwork(unknown, dtype="float32", has_images=True)


def test_a_text_only_checkpoint_gives_its_own_log_probs(checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint("text")
    network = CheckpointNetwork(directory, dtype="float32", has_images=False)
    played = PlayedConversation((text_sample(directory),), turns=1, images=0, versions=())
    measured = measure(network, played, checkpoint=directory, family=None, logprobs_mode=None)
    tolerance = TOLERANCES["float32"]
    assert measured.text.tokens == 32
    assert measured.text.within(tolerance)
    assert not measured.mistakes["each log-prob one token too late"].within(tolerance)


def text_sample(directory: Path) -> TrainingSample:
    """Return a sample of random tokens, the last 32 with the log-probs of a plain forward pass."""
    transformers: Any = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(1, 900, 48)
    with torch.no_grad():
        logprobs = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
    mask = np.arange(48) >= 16
    of_tokens = np.array([0.0, *(float(logprobs[at - 1, ids[at]]) for at in range(1, 48))], np.float32)
    return TrainingSample(
        rollout="forward.0",
        group="forward",
        leaf=1,
        reward=0.0,
        token_ids=ExpandedIds(ids.astype(np.int32)),
        mask=mask,
        logprobs=np.where(mask, of_tokens, 0).astype(np.float32),
        token_types=np.zeros(48, np.uint8),
        version_index=np.full(48, -1, np.int32),
        versions=(),
        turn_index=np.where(mask, 0, -1).astype(np.int32),
        turns=(0,),
        token_rewards=np.zeros(48, np.float32),
        content=np.zeros(48, np.uint8),
        placeholders=(),
        images=(),
        image_directory="",
    )
