"""Runs with one fault each: every fault is detected.

Each fault is where it would occur in practice, and changes nothing else. The difference between the log-probs of the
sampler and of the trainer shows it within a step or two. The reward would show it only after a whole run, or never.
"""

import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.grpo_color_codeword import grpo
from examples.grpo_color_codeword.grpo import Learner
from examples.grpo_color_codeword.processes import TrainingProcessEnded
from examples.grpo_color_codeword.training import Training, TrainingStep
from rollout.serving.network.engine import NetworkEngine
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.server import EngineServer
from rollout.trainer import TrainingSample, collate

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

CAUGHT = 1e-2
SMALL = ("engine.sampling.seed=0", "policy.batch=32", "tasks.count=64", "tasks.group_size=8")
Patch = pytest.MonkeyPatch
AddTableRow = Callable[..., None]


def steps_of(checkpoint: Path, runs: Path, engine: str, count: int = 1, *settings: str) -> list[TrainingStep]:
    """Play and train the first steps of a run."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with Training(checkpoint, runs, engine, seed=0, workers=1, overrides=[*SMALL, *settings]) as training:
        return [training.step() for _ in range(count)]


def report(add_row: AddTableRow, name: str, steps: Sequence[TrainingStep], caught_by: str) -> float:
    largest = max(step.update_stats.max_logprob_difference for step in steps)
    add_row(name, f"{largest:.1e}", len(steps), sum(step.failed for step in steps), caught_by)
    return largest


def shuffle_images(patch: Patch) -> None:
    images = Learner._encode_images

    def shuffled(self: Learner, shown: Sequence[str], given: Sequence[TrainingSample]) -> Any:
        return images(self, random.Random(0).sample(shown, len(shown)), given)

    patch.setattr(Learner, "_encode_images", shuffled)


def read_logits_late(patch: Patch) -> None:
    patch.setattr(grpo, "align_logits_with_tokens", lambda logits: logits)


def roll_logprobs(patch: Patch) -> None:
    def rolled(given: Sequence[TrainingSample]) -> Any:
        batch = collate(given)
        return replace(batch, logprobs=batch.logprobs.roll(1, dims=1))

    patch.setattr(grpo, "collate", rolled)


def keep_newest_pixels(patch: Patch) -> None:
    images = Learner._encode_images

    def newest(self: Learner, shown: Sequence[str], given: Sequence[TrainingSample]) -> Any:
        features, grids = images(self, shown, given)
        for layer in (features.pooler_output, *features.deepstack_features):
            for at, one in enumerate(layer):
                if (at + 1) % 3:
                    layer[at] = torch.zeros_like(one)
        return features, grids

    patch.setattr(Learner, "_encode_images", newest)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("images shuffled between samples", shuffle_images),
        ("logits late by one", read_logits_late),
        ("log-probs rolled by one", roll_logprobs),
        ("only the newest image's pixels kept", keep_newest_pixels),
    ],
)
def test_a_trainer_that_reads_wrongly_disagrees_with_the_sampler_at_once(
    checkpoint: Path,
    runs: Path,
    engine: str,
    monkeypatch: Patch,
    add_row: AddTableRow,
    name: str,
    fault: Callable[[Patch], None],
) -> None:
    fault(monkeypatch)
    assert report(add_row, name, steps_of(checkpoint, runs, engine), "log-prob difference, first step") > CAUGHT


def test_nothing_is_caught_where_nothing_is_broken(
    checkpoint: Path, runs: Path, engine: str, add_row: AddTableRow
) -> None:
    assert report(add_row, "nothing", steps_of(checkpoint, runs, engine, 2), "–") < 1e-3


def test_weights_that_are_never_pushed_are_caught_in_the_second_step(
    checkpoint: Path, runs: Path, engine: str, monkeypatch: Patch, add_row: AddTableRow
) -> None:
    publish = Training._publish
    untrained = SimpleNamespace(model=transformers.AutoModelForImageTextToText.from_pretrained(checkpoint))

    def first_weights(self: Training) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self, "learner", untrained)
            publish(self)

    monkeypatch.setattr(Training, "_publish", first_weights)
    first, second = steps_of(checkpoint, runs, engine, 2)
    assert first.update_stats.max_logprob_difference < 1e-3
    assert report(add_row, "weights never pushed", [first, second], "log-prob difference, second step") > CAUGHT


class ForgetfulEngine(NetworkEngine):
    """Silently replaces the first of several pictures with a black one."""

    def _prompt_images(self, request: Any, taken: Any) -> Any:
        first, *others = super()._prompt_images(request, taken)
        if not others:
            return (first,)
        black = replace(first.processed, patches=-torch.ones(first.processed.patches.shape).numpy())
        return (replace(first, image_hash="lost", processed=black), *others)


def test_an_engine_that_loses_a_prior_image_is_caught_at_once(
    checkpoint: Path, runs: Path, add_row: AddTableRow
) -> None:
    broken = ForgetfulEngine(NetworkSettings(checkpoint, model_name="policy", allowed_directories=(runs,)))
    with EngineServer(broken, weight_version="0") as url:
        steps = steps_of(checkpoint, runs, url)
    assert report(add_row, "a prior image lost in the engine", steps, "log-prob difference, first step") > CAUGHT


def test_a_request_with_a_dropped_reference_reaches_no_engine(
    checkpoint: Path, runs: Path, engine: str, add_row: AddTableRow
) -> None:
    dropping = "environment.class=tests.needs.learning.dropping:DropsAPriorReference"
    with pytest.raises(TrainingProcessEnded, match="every rollout of the batch failed") as refused:
        steps_of(checkpoint, runs, engine, 1, dropping, "run.max_failed=1.0")
    assert "RequestRefusedLocally" in str(refused.value)
    add_row("a prior reference dropped from requests", "–", 0, "all", "our client, before the engine is asked")
