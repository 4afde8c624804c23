"""A trainer with TRL that kills itself at a given point, for `test_killed.py`.

Usage: `torchrun killed_training.py OPTIONS`, where OPTIONS is JSON, see `Options`. Or call `run` in a process. Each
checkpoint contains the ids of the groups that its weights have trained on.
"""

import json
import os
import random
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig

from rollout.trainer import ComparisonThresholds, RankBatches, RankStep, grpo
from rollout.trainer.ranks.reading import StepOptions
from rollout.trainer.trl import RolloutGRPOTrainer, last_checkpoint

GROUPS_FILE = "groups.json"
"""The file in a checkpoint with the ids of the groups."""
PLACES = ("trained", "writing", "renamed", "moment")
"""Where a trainer kills itself: between a step and its checkpoint, while the checkpoint is written, when it is whole
and not committed, or some milliseconds after the step, wherever it is then."""
_MOMENT_SECONDS = 0.3


@dataclass(frozen=True)
class Options:
    """What a test wants.

    Attributes:
        url: the URL of the queue.
        model: the directory of the first checkpoint.
        output: the directory of TRL's checkpoints.
        steps: the number of steps.
        save_steps: the number of steps between two checkpoints.
        kills: the rank, the step and the place of each kill. The first holds for the first start, the second for the
            first restart of torchrun, and so on.
    """

    url: str
    model: str
    output: str
    steps: int
    save_steps: int
    kills: tuple[tuple[int, int, str], ...] = ()

    def kills_at(self, rank: int, step: int, place: str) -> bool:
        """Whether this rank kills itself at this place of the step."""
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return [rank, step, place] in [list(kill) for kill in self.kills[restarts : restarts + 1]]


class RecordedBatches(RankBatches):
    """Batches that remember their groups."""

    trained: list[str]
    """The ids of all groups that were handed out, with those of the checkpoint."""
    options: Options
    """What the test wants."""

    def __next__(self) -> RankStep:
        step = super().__next__()
        self.trained += step.groups
        return step

    def commit(self) -> None:
        kill_at(self.options, int(self.version or 0), "renamed")
        super().commit()


class KilledTrainer(RolloutGRPOTrainer):
    """Saves the ids of the groups in each checkpoint, and kills itself."""

    recorded: RecordedBatches
    options: Options

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if rank() == 0:
            (Path(output_dir) / GROUPS_FILE).write_text(json.dumps(self.recorded.trained))
        kill_at(self.options, self.state.global_step, "writing")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.recorded.trained = json.loads((Path(checkpoint) / GROUPS_FILE).read_text())


class KillAfterStep(TrainerCallback):
    """Kills this process after a step."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_step_end`."""
        kill_at(self._options, state.global_step, "trained")
        if self._options.kills_at(rank(), state.global_step, "moment"):
            threading.Timer(random.Random(state.global_step).uniform(0.0, _MOMENT_SECONDS), kill).start()


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def kill_at(options: Options, step: int, place: str) -> None:
    if options.kills_at(rank(), step, place):
        kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(options_text: str) -> None:
    """Train until the last step, or until this process kills itself. Continue from the last checkpoint."""
    options = Options(**json.loads(options_text))
    torch.set_num_threads(1)
    settings = GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        save_steps=options.save_steps,
        save_total_limit=2,
        per_device_train_batch_size=4,
        num_generations=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
    )
    step_options = StepOptions(groups_per_step=2, packing=None, estimator=grpo, credit="turns", max_length=None)
    batches = RecordedBatches({options.url: 1.0}, None, step_options, None, None, None, timeout=60.0, rank_timeout=60.0)
    batches.trained, batches.options = [], options
    with batches:
        trainer = KilledTrainer(
            AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            batches,
            args=settings,
            thresholds=ComparisonThresholds(mean_difference=float("inf"), published_share=0.0),
            callbacks=[KillAfterStep(options)],
        )
        trainer.recorded, trainer.options = batches, options
        trainer.train(resume_from_checkpoint=last_checkpoint(options.output))


if __name__ == "__main__":
    run(sys.argv[1])
