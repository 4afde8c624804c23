"""The example with one fault each: it reports every fault by itself within three steps, and exits with 1.

Each fault is where it would occur in practice, and changes nothing else. The reward would show it only after a whole
run, or never.
"""

import importlib
import random
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.grpo_color_codeword import grpo, train
from examples.grpo_color_codeword.grpo import Learner
from examples.grpo_color_codeword.training import Training
from rollout.serving.network.engine import NetworkEngine
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.server import EngineServer
from rollout.trainer import ComparisonThresholds, Group, TrainingSample, Trajectory, collate
from rollout.trainer.reading.image_access import ImageAccessCheck
from tests.needs.learning.conftest import FULL

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

STEPS = 3
ROLLOUTS = 16
TOKENS = ROLLOUTS * 6
SMALL = (f"policy.batch={ROLLOUTS}", "tasks.count=96", "tasks.group_size=4")
DIFFERENCE = r"the log-probs of engine and trainer differ by (\S+), but by at most 0\.001"
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
AddTableRow = Callable[..., None]


@dataclass(frozen=True)
class Ending:
    """How the example ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def trained_steps(self) -> int:
        """The number of steps that changed the weights."""
        return len(re.findall(r"^step +\d+ ", self.err, re.MULTILINE))

    @property
    def failure(self) -> str:
        """What the example says about its end; empty if it trained to its last step."""
        return self.err.partition("training failed: ")[2].strip()


@pytest.fixture
def run_example(monkeypatch: Patch, capsys: Capture, runs: Path) -> Callable[..., Ending]:
    """Run the example's command with an engine that runs already."""

    def run(engine: str, *settings: str) -> Ending:
        options = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        arguments = ["train", "--runs", str(runs), "--workers", "1", "--steps", str(STEPS), *options]
        monkeypatch.setattr("sys.argv", arguments)
        monkeypatch.setattr(train, "start_sampler", lambda *_: nullcontext(engine))
        monkeypatch.setattr(train, "exit_on_signals", lambda: None)
        code = train.main()
        printed = capsys.readouterr()
        return Ending(code, printed.out, printed.err)

    return run


RunExample = Callable[..., Ending]


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
def test_a_trainer_that_reads_wrongly_is_reported_in_the_first_step(
    engine: str,
    run_example: RunExample,
    monkeypatch: Patch,
    add_row: AddTableRow,
    name: str,
    fault: Callable[..., None],
) -> None:
    fault(monkeypatch)
    ending = run_example(engine)
    add_row(name, 1, ending.failure)
    assert ending.code == 1
    assert re.match(f"step 1 changed no weights: {DIFFERENCE}", ending.failure)
    assert ending.trained_steps == 0


def test_nothing_is_reported_where_nothing_is_broken(
    engine: str, run_example: RunExample, add_row: AddTableRow
) -> None:
    ending = run_example(engine)
    add_row("nothing", "–", ending.failure)
    assert ending.failure == ""
    assert "warning" not in ending.err
    assert ending.trained_steps == STEPS
    tokens = STEPS * TOKENS
    assert f"in {tokens} compared tokens of {tokens}, 100.0% sampled by the newest version, 0.0% clipped" in ending.out


@pytest.mark.skipif(not FULL, reason="takes another launch")
def test_stale_rollouts_are_no_error(engine: str, run_example: RunExample) -> None:
    ending = run_example(engine, "policy.max_staleness=2", "policy.on_update=keep")
    assert ending.failure == ""
    assert ending.trained_steps == STEPS


def test_weights_that_are_never_pushed_are_reported_in_the_second_step(
    checkpoint: Path, engine: str, run_example: RunExample, monkeypatch: Patch, add_row: AddTableRow
) -> None:
    publish = Training._publish
    untrained = SimpleNamespace(model=transformers.AutoModelForImageTextToText.from_pretrained(checkpoint))

    def first_weights(self: Training) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self, "learner", untrained)
            publish(self)

    monkeypatch.setattr(Training, "_publish", first_weights)
    ending = run_example(engine)
    add_row("weights never pushed", 2, ending.failure)
    assert ending.code == 1
    assert re.match(f"step 2 changed no weights: {DIFFERENCE}", ending.failure)
    assert ending.trained_steps == 1


def publish_the_next_name(patch: Patch) -> None:
    publish = Training._publish

    def early(self: Training) -> None:
        self._version += 1
        publish(self)
        self._version -= 1

    patch.setattr(Training, "_publish", early)


def count_ahead(patch: Patch) -> None:
    step = Learner.step

    def ahead(self: Learner, groups: Sequence[Group], version: int, thresholds: ComparisonThresholds) -> Any:
        return step(self, groups, version + 1, thresholds)

    patch.setattr(Learner, "step", ahead)


NEWER_NAMES = publish_the_next_name, 0, 1
OLDER_NAMES = count_ahead, 1, 0
# In a stale run, only the first step can find them; the other steps may have no rollout of the newest version.
OFF_BY_ONE = [(0, *NEWER_NAMES), (2, *OLDER_NAMES)]
if FULL:
    OFF_BY_ONE += [(0, *OLDER_NAMES), (2, *NEWER_NAMES)]


@pytest.mark.parametrize(("max_staleness", "fault", "trainer", "engine_name"), OFF_BY_ONE)
def test_version_names_off_by_one_are_reported_in_the_first_step(
    engine: str,
    run_example: RunExample,
    monkeypatch: Patch,
    add_row: AddTableRow,
    max_staleness: int,
    fault: Callable[..., None],
    trainer: int,
    engine_name: int,
) -> None:
    fault(monkeypatch)
    ending = run_example(engine, f"policy.max_staleness={max_staleness}")
    add_row(f"version names off by one, max_staleness {max_staleness}", 1, ending.failure)
    assert ending.code == 1
    assert (
        f"no log-prob was compared: the trainer's version is {trainer}, and the {TOKENS} trained tokens are from "
        f"version '{engine_name}' ({TOKENS})."
    ) in ending.failure
    assert ending.trained_steps == 0


def delete_images(trajectory: Trajectory) -> None:
    assert trajectory.started is not None
    for descriptor in trajectory.images.values():
        Path(trajectory.started.assets, descriptor["raw_image_id"]).unlink(missing_ok=True)


def test_a_missing_image_of_the_trainer_is_named(
    engine: str, run_example: RunExample, monkeypatch: Patch, add_row: AddTableRow
) -> None:
    step = Learner.step

    def without_images(self: Learner, groups: Sequence[Group], *arguments: Any) -> Any:
        delete_images(groups[-1].trajectories[-1])
        return step(self, groups, *arguments)

    monkeypatch.setattr(Learner, "step", without_images)
    ending = run_example(engine)
    add_row("an image of the trainer missing", 1, ending.failure)
    assert ending.code == 1
    assert re.match(r"rollout \S+, branch of node \d+, image \w+\.png: ", ending.failure)
    assert ending.trained_steps == 0


@pytest.mark.skipif(not FULL, reason="the reader's own tests cover it; here it takes another launch")
def test_an_image_that_is_missing_when_its_rollout_arrives_is_named(
    engine: str, run_example: RunExample, monkeypatch: Patch, add_row: AddTableRow
) -> None:
    problem = ImageAccessCheck.problem
    first: list[str] = []

    def problem_without_images(self: ImageAccessCheck, trajectory: Trajectory) -> str | None:
        if not first:
            first.append(trajectory.rollout)
            delete_images(trajectory)
        return problem(self, trajectory)

    monkeypatch.setattr(ImageAccessCheck, "problem", problem_without_images)
    ending = run_example(engine)
    add_row("an image missing when its rollout arrives", 1, ending.failure)
    assert ending.code == 1
    assert re.match(r"\S+: this process cannot read \S+\.png: No such file", ending.failure)


class ForgetfulEngine(NetworkEngine):
    """Silently replaces the first of several pictures with a black one."""

    def _prompt_images(self, request: Any, taken: Any) -> Any:
        first, *others = super()._prompt_images(request, taken)
        if not others:
            return (first,)
        black = replace(first.processed, patches=-torch.ones(first.processed.patches.shape).numpy())
        return (replace(first, image_hash="lost", processed=black), *others)


def test_an_engine_that_loses_an_earlier_image_is_reported_in_the_first_step(
    checkpoint: Path, runs: Path, run_example: RunExample, add_row: AddTableRow
) -> None:
    broken = ForgetfulEngine(NetworkSettings(checkpoint, model_name="policy", allowed_directories=(runs,)))
    with EngineServer(broken, weight_version="0") as url:
        ending = run_example(url)
    add_row("an earlier image lost in the engine", 1, ending.failure)
    assert ending.code == 1
    assert re.match(f"step 1 changed no weights: {DIFFERENCE}", ending.failure)


def test_a_request_with_a_dropped_reference_reaches_no_engine(
    engine: str, run_example: RunExample, add_row: AddTableRow
) -> None:
    dropping = "environment.class=tests.needs.learning.dropping:DropsAPriorReference"
    ending = run_example(engine, dropping, "run.max_failed=1.0")
    add_row("an earlier reference dropped from requests", 1, ending.failure)
    assert ending.code == 1
    assert ending.failure.startswith("every rollout of the batch failed; the first error is RequestRefusedLocally")
