"""Makes TRL's checkpoints appear whole, with the state of the batches.

A checkpoint is written into a hidden directory, forced to disk, and renamed. So a directory with the name of a
checkpoint is always whole, whenever the trainer is killed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from rollout.trainer.trl.errors import WrongCheckpoint

STATE_FILE = "rollout_state.json"
"""The file of a checkpoint with the state of the batches."""
DRAFTS = ".draft"
"""The directory in `output_dir` in which a checkpoint is written."""


def last_checkpoint(output_dir: Path | str) -> str | None:
    """Return the path of the last checkpoint in the directory; None if there is none, so that training begins."""
    if not Path(output_dir).is_dir():
        return None
    found: str | None = get_last_checkpoint(str(output_dir))
    return found


def load_state(checkpoint: Path | str) -> dict[str, Any]:
    """Return the state of the batches in a checkpoint.

    Raises:
        WrongCheckpoint: it was not saved by `RolloutGRPOTrainer`, or it is damaged.
    """
    file = Path(checkpoint) / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WrongCheckpoint(
            f"{checkpoint} has no {STATE_FILE}, so RolloutGRPOTrainer has not saved it. Resume from a checkpoint that "
            "it saved. To begin with these weights, pass this path as `model`, and another output_dir."
        ) from error
    except ValueError as error:
        raise WrongCheckpoint(f"{file} is damaged: {error}. Resume from an earlier checkpoint.") from error
    return state


def saved_step(checkpoint: Path | str) -> int:
    """Return the number of the step after which the checkpoint was saved.

    Raises:
        WrongCheckpoint: the state of TRL's trainer is missing or damaged.
    """
    file = Path(checkpoint) / TRAINER_STATE_NAME
    try:
        return int(json.loads(file.read_text("utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongCheckpoint(f"{file} cannot be read: {error!r}. Resume from an earlier checkpoint.") from error


def write_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Write the state into a checkpoint. If the checkpoint has a state, it is replaced at once."""
    draft = checkpoint / f"{STATE_FILE}.draft"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(checkpoint / STATE_FILE)
    _force_to_disk(checkpoint)


def clear_drafts(output_dir: Path) -> None:
    """Remove what killed trainers have left."""
    shutil.rmtree(output_dir / DRAFTS, ignore_errors=True)


def move_in(draft: Path, checkpoint: Path) -> None:
    """Give a draft its final name when all its files are on disk. A checkpoint with this name is replaced."""
    for path in sorted(draft.rglob("*"), reverse=True):
        _force_to_disk(path)
    _force_to_disk(draft)
    if checkpoint.exists():
        # Training went back to an earlier checkpoint. Until the next line, that one is the last.
        checkpoint.rename(draft.parent / "replaced")
    draft.rename(checkpoint)
    _force_to_disk(checkpoint.parent)
    clear_drafts(checkpoint.parent)


def remove_older(checkpoint: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints, so that at most `limit` are left with this one; None or 0: remove none."""
    if not limit:
        return
    older = [path for path in checkpoint.parent.glob("checkpoint-*") if path != checkpoint]
    older.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    trash = checkpoint.parent / DRAFTS
    for path in older[: max(0, len(older) + 1 - limit)]:
        trash.mkdir(exist_ok=True)
        path.rename(trash / path.name)  # so that no part of it remains under the name of a checkpoint
    clear_drafts(checkpoint.parent)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
