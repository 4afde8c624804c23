"""A trainer that saves checkpoints, and kills itself at a given point. `test_trainer.py` starts it.

This process forks one trainer for each line of its standard input. The weights of a trainer are the list of the
trajectories that it trained on, so a checkpoint shows everything that was trained before it.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transports.files.queue  # imported before the fork, so that a trainer starts quickly
from rollout.trainer import ReaderSettings, open_reader

SAVE_EVERY = 2
POLL = 0.1

__all__ = ["transports"]


@dataclass
class CheckpointingTrainer:
    """One trainer process."""

    url: str
    checkpoint: Path
    rank: int
    world_size: int
    die_at: str
    """`stepped`: between the optimizer's step and the checkpoint; `saved`: between the checkpoint and the ack."""
    die_after: int
    """How many times it passes this point before it dies."""
    idle: float
    """Seconds without a group after which it exits; 0: it never exits."""
    weights: list[list[str]] = field(default_factory=list)

    async def run(self) -> None:
        async with open_reader(
            self.url, rank=self.rank, world_size=self.world_size, settings=ReaderSettings()
        ) as reader:
            if self.checkpoint.exists():
                stored = json.loads(self.checkpoint.read_text())
                self.weights = stored["weights"]
                reader.load_state_dict(stored["reader"])
            idle_seconds = 0.0
            while not self.idle or idle_seconds < self.idle:
                if (group := await reader.receive_group(timeout=POLL)) is None:
                    idle_seconds += POLL
                    continue
                idle_seconds = 0.0
                self.weights.append([f"{t.rollout} {t.status}" for t in group.trajectories])
                self.die_if_due("stepped")
                if len(self.weights) % SAVE_EVERY == 0:
                    self.save(reader.state_dict())
                    self.die_if_due("saved")
                    await reader.commit()
            self.save(reader.state_dict())
            await reader.commit()

    def save(self, state: dict[str, Any]) -> None:
        """Save weights and state in one file, atomically."""
        draft = self.checkpoint.with_suffix(".draft")
        draft.write_text(json.dumps({"weights": self.weights, "reader": state}))
        draft.rename(self.checkpoint)

    def die_if_due(self, point: str) -> None:
        if point == self.die_at:
            self.die_after -= 1
            if self.die_after < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the trainers that died
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            asyncio.run(CheckpointingTrainer(**{**command, "checkpoint": Path(command["checkpoint"])}).run())
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
