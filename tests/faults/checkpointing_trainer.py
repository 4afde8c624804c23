"""A trainer that keeps checkpoints, and dies where it is told to. For `test_trainer.py`: forks one per line it reads.

Its weights are the list of what they were trained on, so that a checkpoint tells everything that its lineage has seen.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transports.files.queue  # imported before the fork, so that a trainer starts at once
from rollout.trainer import ReaderSettings, open_reader

SAVE_EVERY = 2
POLL = 0.1

__all__ = ["transports"]


@dataclass
class CheckpointingTrainer:
    """One process's life."""

    url: str
    checkpoint: Path
    rank: int
    world_size: int
    die_at: str
    """`stepped`: between the optimiser's step and the checkpoint; `saved`: between the checkpoint and the ack."""
    die_after: int
    """How many times it passes there unharmed."""
    idle: float
    """Seconds without a group after which it leaves; 0: it never does."""
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
        """Weights and state in one file, which appears whole."""
        draft = self.checkpoint.with_suffix(".draft")
        draft.write_text(json.dumps({"weights": self.weights, "reader": state}))
        draft.rename(self.checkpoint)

    def die_if_due(self, point: str) -> None:
        if point == self.die_at:
            self.die_after -= 1
            if self.die_after < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are buried by the system
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
