"""Checkpoints that are whole or do not exist: weights, optimiser, version and the reader's state in one directory.

All ranks write their parts into `.incoming`. Then the first rank renames it, which is one atomic operation.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from examples.fsdp.learner import ShardedLearner

_PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far the trainer is.

    Attributes:
        version: the version of the weights, which is the number of steps that made them.
        reader: the state of the reader: which groups these weights have trained on.
    """

    version: int
    reader: Mapping[str, Any]


def save_checkpoint(directory: Path, learner: ShardedLearner, progress: Progress) -> None:
    """Write a checkpoint, and remove the older ones. Every rank calls it."""
    incoming = directory / ".incoming"
    is_first_rank = dist.get_rank() == 0
    if is_first_rank:
        shutil.rmtree(incoming, ignore_errors=True)  # what a killed trainer left
    dist.barrier()
    dcp.save(learner.state_dict(), checkpoint_id=incoming)
    if not is_first_rank:
        return
    with (incoming / _PROGRESS_FILE).open("w") as file:
        json.dump(asdict(progress), file)
        file.flush()
        os.fsync(file.fileno())
    older = list(directory.glob("step-*"))
    os.replace(incoming, directory / f"step-{progress.version:06}")
    _sync(directory)
    for path in older:
        shutil.rmtree(path)


def load_checkpoint(directory: Path, learner: ShardedLearner) -> Progress | None:
    """Load the newest checkpoint into the learner. Return its progress; None if there is none. Every rank calls it."""
    newest = max(directory.glob("step-*"), default=None)
    if newest is None:
        return None
    state = learner.state_dict()
    dcp.load(state, checkpoint_id=newest)
    learner.load_state_dict(state)
    return Progress(**json.loads((newest / _PROGRESS_FILE).read_text()))


def _sync(directory: Path) -> None:
    """Make the new name of a file in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
