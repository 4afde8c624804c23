"""Queues of scripted rollouts, and trainers that train from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from transformers import TrainerCallback

from rollout.records.launch_status import LaunchPhase
from rollout.trainer import ComparisonThresholds, open_batches
from rollout.trainer.testing import put_all, put_status, scripted_rollout
from rollout.trainer.trl import RolloutGRPOTrainer
from tests.needs.trl.world import ANYTHING, config
from transports import QueueStats, open_queue


def fill(url: str, groups: int, *, size: int = 2, versions: Sequence[str] = ()) -> list[str]:
    """Put groups into a queue, and the end of the launch; return the ids of the groups.

    The first rollout of a group has a reward of 1 and one turn, the second a reward of 2 and two turns, and so on.
    `versions` are the versions that sampled the groups; without them, it is version 0.
    """
    ids = [f"{group:06d}" for group in range(groups)]

    async def put() -> None:
        async with open_queue(url) as queue:
            for name, version in zip(ids, versions or ["0"] * groups, strict=True):
                for member in range(size):
                    packets = await scripted_rollout(
                        f"{name}.{member}", attempt=1 + member, group_size=size, turns=1 + member, version=version
                    )
                    await put_all(queue, packets)
            await put_status(queue, LaunchPhase.DONE)

    anyio.run(put)
    return ids


def stats_of(url: str) -> QueueStats:
    async def ask() -> QueueStats:
        async with open_queue(url) as queue:
            return await queue.stats()

    return anyio.run(ask)


class TrainedGroups(TrainerCallback):
    """Remembers the groups of each step, after the weights have changed."""

    def __init__(self) -> None:
        self.groups: list[str] = []
        self.trainer: Any = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.groups += self.trainer._rank_step.groups


@contextmanager
def trainer_from(
    url: str,
    checkpoint: Path,
    directory: Path,
    *,
    groups_per_step: int = 1,
    publish: Any = None,
    thresholds: ComparisonThresholds = ANYTHING,
    trained: TrainedGroups | None = None,
    peft_config: Any = None,
    **settings: Any,
) -> Iterator[RolloutGRPOTrainer]:
    """Open a trainer that reads the queue and saves each second step."""
    args = config(directory, **({"max_steps": 100, "save_strategy": "steps", "save_steps": 2} | settings))
    with open_batches(url, groups_per_step=groups_per_step, packing=None, timeout=60) as batches:
        trainer = RolloutGRPOTrainer(
            str(checkpoint),
            batches,
            args=args,
            publish=publish,
            thresholds=thresholds,
            callbacks=[] if trained is None else [trained],
            peft_config=peft_config,
        )
        if trained is not None:
            trained.trainer = trainer
        yield trainer
