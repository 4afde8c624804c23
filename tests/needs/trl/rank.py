"""One rank that trains from a queue; torchrun starts it.

rank.py URL CHECKPOINT OUTPUT SETTINGS        SETTINGS are those of `trainer_from`, as JSON
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rollout.trainer.trl import last_checkpoint
from tests.needs.trl.queues import trainer_from


def main() -> None:
    url, checkpoint, output, settings = sys.argv[1:]
    torch.set_num_threads(1)
    published: list[int] = []

    def publish(version: int, save: Any) -> None:
        published.append(version)

    with trainer_from(url, Path(checkpoint), Path(output), publish=publish, **json.loads(settings)) as trainer:
        trainer.train(resume_from_checkpoint=last_checkpoint(output))
        report = {"ranks": trainer.args.world_size, "published": published, "log": trainer.state.log_history}
        Path(output, f"report{trainer.args.process_index}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
    os._exit(0)  # at the end of Python 3.11.7, the garbage collection of torch's objects may not end


if __name__ == "__main__":
    main()
