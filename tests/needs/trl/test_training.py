"""Training from a queue: versions, logs, findings, and what is refused."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from rollout.trainer import ComparisonThresholds
from rollout.trainer.trl import WrongLogprobs
from rollout.trainer.trl.publishing import PublishedVersions
from tests.needs.trl.queues import fill, trainer_from


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/trajectories?retain=true"


def test_it_trains_each_group_and_ends_with_the_queue(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 5)
    with trainer_from(url, checkpoint, tmp_path / "out", groups_per_step=2) as trainer:
        trainer.train()
        assert trainer.state.global_step == 2
    [first, second] = [line for line in trainer.state.log_history if "loss" in line]
    assert first["reward"] == 1.5
    assert first["reward_std"] == pytest.approx(math.sqrt(1 / 3))
    assert (first["frac_reward_zero_std"], first["rollout/groups"], first["rollout/samples"]) == (0, 2, 4)
    assert (first["completions/min_length"], first["completions/max_length"]) == (2, 4)
    assert (first["rollout/staleness/max"], second["rollout/staleness/max"]) == (0, 1)
    assert (first["rollout/published_share"], second["rollout/published_share"]) == (1, 0)
    assert first["sampling/sampling_logp_difference/max"] >= first["sampling/sampling_logp_difference/mean"] > 0
    assert first["sampling/importance_sampling_ratio/min"] <= first["sampling/importance_sampling_ratio/max"]
    assert second["num_tokens"] == 2 * first["num_tokens"]
    assert second["epoch"] == 2 / trainer.args.max_steps


def test_it_publishes_the_first_version_and_each_new_one(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 3)
    published: list[int] = []

    def publish(version: int, save: Any) -> None:
        published.append(version)
        save(tmp_path / f"version{version}")

    with trainer_from(url, checkpoint, tmp_path / "out", publish=publish, max_steps=2) as trainer:
        trainer.train()
        assert trainer._batches.version == 2
    assert published == [0, 1, 2]
    assert PublishedVersions.load(tmp_path / "out") == PublishedVersions(published=2)
    weights = [(tmp_path / f"version{version}" / "model.safetensors").read_bytes() for version in published]
    assert len(set(weights)) == 3


@pytest.mark.parametrize("published", [1, 2])
def test_versions_that_a_killed_trainer_had_published_are_not_judged(
    url: str, checkpoint: Path, tmp_path: Path, published: int
) -> None:
    """The third group is not from version 2. That is an error, unless the killed trainer made other weights of it."""
    fill(url, 3, versions=["0", "1", "0"])
    thresholds = ComparisonThresholds(mean_difference=math.inf)
    with trainer_from(url, checkpoint, tmp_path / "out", thresholds=thresholds, max_steps=1) as trainer:
        trainer.train()
    PublishedVersions(published=published).save(tmp_path / "out")
    with trainer_from(url, checkpoint, tmp_path / "out", thresholds=thresholds, max_steps=3) as trainer:
        resumed = str(tmp_path / "out" / "checkpoint-1")
        if published < 2:
            with pytest.raises(WrongLogprobs, match="step 3 changed no weights: no log-prob was compared"):
                trainer.train(resume_from_checkpoint=resumed)
        else:
            trainer.train(resume_from_checkpoint=resumed)
            assert trainer.state.global_step == 3


def test_an_error_of_the_comparison_ends_training_before_the_weights_change(
    url: str, checkpoint: Path, tmp_path: Path
) -> None:
    fill(url, 2)
    with trainer_from(
        url, checkpoint, tmp_path / "out", thresholds=ComparisonThresholds(mean_difference=1.0)
    ) as trainer:
        with pytest.raises(WrongLogprobs, match="step 1 changed no weights: the log-probs of engine and trainer"):
            trainer.train()
        assert trainer.state.global_step == 0
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_warning_is_logged_once(url: str, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(url, 3)
    caplog.set_level(logging.WARNING, "rollout.trainer.trl.trainer")
    thresholds = ComparisonThresholds(mean_difference=math.inf, published_share=0, clipped_share=0.1)
    with trainer_from(url, checkpoint, tmp_path / "out", thresholds=thresholds) as trainer:
        trainer.train()
    assert [message for message in caplog.messages if "leaves 1 ± 0.2" in message] == caplog.messages[:1]


def test_adapters_are_trained_and_published_alone(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 1)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with trainer_from(
        url,
        checkpoint,
        tmp_path / "out",
        publish=lambda version, save: save(tmp_path / str(version)),
        peft_config=lora,
    ) as trainer:
        trainer.train()
    assert {file.name for file in (tmp_path / "1").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not (tmp_path / "1" / "model.safetensors").exists()
    adapters = [(tmp_path / version / "adapter_model.safetensors").read_bytes() for version in ("0", "1")]
    assert adapters[0] != adapters[1]
