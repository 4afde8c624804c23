"""Publishes the weights at the beginning and after each step of the optimiser.

A trainer that is killed between two checkpoints has published versions that a resumed one makes again, with other
weights. The tokens of such a lost version cannot be compared with the new weights of the same number. So the highest
published number is remembered in `output_dir`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rollout.rundir.private_files import write_private_file
from rollout.trainer.ranks.batches import RankBatches
from rollout.trainer.weights.directory import Saver

Publish = Callable[[int, Saver], object]
"""Publishes a version: its number, and the function that saves its weights into a directory."""


_PUBLISHED_FILE = "published_version"
"""The file in `output_dir` with the highest version that was published."""


def published_version(output_dir: Path | str) -> int:
    """Return the highest version that a trainer with this `output_dir` has published; -1 if there is none."""
    try:
        return int((Path(output_dir) / _PUBLISHED_FILE).read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return -1


def _remember_published(output_dir: Path | str, version: int) -> None:
    """Remember a version before it is published; a lower number than the remembered one changes nothing."""
    if version > published_version(output_dir):
        write_private_file(Path(output_dir) / _PUBLISHED_FILE, f"{version}\n".encode(), mode=0o644)


class VersionCallback(TrainerCallback):
    """Tells the batches the trainer's version, which is the number of the step, and publishes it.

    Args:
        trainer: the trainer.
        batches: the batches of this rank.
        publish: publishes a version; None: nothing is published.
    """

    def __init__(self, trainer: Any, batches: RankBatches, publish: Publish | None) -> None:
        self._trainer, self._batches, self._publish = trainer, batches, publish

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Publish the version of the loaded checkpoint, which may be older than what engines have."""
        self._begin_version(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Publish the weights after the step."""
        state.epoch = state.global_step / state.max_steps
        self._begin_version(state.global_step)

    def _begin_version(self, version: int) -> None:
        if self._publish is not None:
            trainer = self._trainer
            weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # collective, if the model is sharded
            if trainer.accelerator.is_main_process:
                model = trainer.accelerator.unwrap_model(trainer.model)

                def save(directory: Path) -> None:
                    model.save_pretrained(directory, state_dict=weights)

                _remember_published(trainer.args.output_dir, version)
                self._publish(version, save)
        self._batches.version = version
