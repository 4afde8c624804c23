"""Publishes the weights at the beginning and after each step of the optimiser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rollout.trainer.ranks.batches import RankBatches
from rollout.trainer.weights.directory import Saver

Publish = Callable[[int, Saver], object]
"""Publishes a version: its number, and the function that saves its weights into a directory."""


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

                self._publish(version, save)
        self._batches.version = version
