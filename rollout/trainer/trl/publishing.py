"""Publishes the weights at the beginning and after each step of the optimiser.

A trainer that is killed between two checkpoints has published versions that a resumed one makes again, with other
weights. The tokens of such a lost version cannot be compared with the new weights of the same number. So the numbers of
published and lost versions are remembered in `output_dir`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback

from rollout.rundir.private_files import write_private_file
from rollout.trainer.ranks.batches import RankBatches
from rollout.trainer.trl.errors import WrongCheckpoint
from rollout.trainer.weights.directory import Saver

Publish = Callable[[int, Saver], object]
"""Publishes a version: its number, and the function that saves its weights into a directory."""


_VERSIONS_FILE = "rollout_versions.json"
"""The file in `output_dir` with `PublishedVersions`."""


@dataclass(frozen=True, slots=True)
class PublishedVersions:
    """What the trainers with one `output_dir` have published.

    Attributes:
        published: the highest version that was published; -1 if there is none.
        lost: the highest version that was published and lost; -1 if there is none. Tokens of this version and of lower
            ones may be from other weights than those of the same number.
    """

    published: int = -1
    lost: int = -1

    @classmethod
    def load(cls, output_dir: Path | str) -> Self:
        """Return what is remembered in this directory."""
        try:
            stored = json.loads((Path(output_dir) / _VERSIONS_FILE).read_text("utf-8"))
            return cls(int(stored["published"]), int(stored["lost"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise WrongCheckpoint(
                f"{Path(output_dir) / _VERSIONS_FILE} is damaged: {error!r}. Delete it. Then the log-probs of "
                "versions that a killed trainer had published may be judged."
            ) from error

    def resumed_at(self, saved: int) -> Self:
        """Return this after a trainer has continued from the version `saved`: what was published above it is lost."""
        return replace(self, lost=self.published) if self.published > saved else self

    def save(self, output_dir: Path | str) -> None:
        """Remember this in the directory."""
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"published": self.published, "lost": self.lost})
        write_private_file(directory / _VERSIONS_FILE, f"{content}\n".encode(), mode=0o644)


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

                versions = trainer.published_versions
                if version > versions.published:  # before the publication, which may be the last thing it does
                    trainer.published_versions = versions = replace(versions, published=version)
                    versions.save(trainer.args.output_dir)
                self._publish(version, save)
        self._batches.version = version
