"""A trainer as a process: `trainer_peer.py QUEUE_URL CHECKPOINT`. Its weights are the list of what it trained on.

It saves weights and reader state in one file, atomically, and commits afterwards. So it can be killed at any point.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from rollout.trainer import TrajectoryReader
from transports import open_queue

SAVE_EVERY = 8


def load(checkpoint: Path) -> dict[str, Any] | None:
    return dict(json.loads(checkpoint.read_text())) if checkpoint.exists() else None


def save(checkpoint: Path, trained: list[list[str]], reader: dict[str, Any]) -> None:
    draft = checkpoint.with_suffix(".draft")
    draft.write_text(json.dumps({"trained": trained, "reader": reader}))
    os.replace(draft, checkpoint)


async def train(url: str, checkpoint: Path) -> None:
    trained: list[list[str]] = []
    async with TrajectoryReader(open_queue(url)) as reader:
        if (saved := load(checkpoint)) is not None:
            trained = saved["trained"]
            reader.load_state_dict(saved["reader"])
        unsaved = 0
        while True:
            trajectory = await reader.receive(timeout=0.25)
            if trajectory is not None:
                trained.append([trajectory.rollout, str(trajectory.status)])
                unsaved += 1
            if unsaved >= SAVE_EVERY or (trajectory is None and unsaved):
                save(checkpoint, trained, reader.state_dict())
                await reader.commit()
                unsaved = 0


if __name__ == "__main__":
    asyncio.run(train(sys.argv[1], Path(sys.argv[2])))
