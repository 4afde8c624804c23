"""A trainer of several ranks, for the tests of `open_batches`. Each rank writes a line of JSON for each step.

Usage: `torchrun trainer.py OPTIONS`, where OPTIONS is JSON; see `Options`.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rollout.trainer import open_batches


@dataclass
class Options:
    """What a test wants.

    Attributes:
        log: the directory of the logs, one file for each rank.
        url: the argument of `open_batches`.
        arguments: more arguments of `open_batches`.
        checkpoint: the file of the state; empty: no checkpoints.
        save_every: the number of steps between checkpoints.
        data_ranks: the number of ranks with the same data.
        pause: "RANK STEP": this rank stops itself with SIGSTOP in this step.
    """

    log: str
    url: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    save_every: int = 5
    same_data: int = 1


def main(options: Options) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    log = Path(options.log) / f"rank{rank}.jsonl"
    checkpoint = Path(options.checkpoint) if options.checkpoint else None

    def write(**line: Any) -> None:
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    try:
        with open_batches(options.url, data_rank=rank // options.same_data, **options.arguments) as batches:
            if checkpoint is not None and checkpoint.exists():
                batches.load_state_dict(json.loads(checkpoint.read_text()))
            write(opened=dist.get_world_size(), pid=os.getpid())
            for step in batches:
                batch = step.batch
                write(
                    step=step.number,
                    groups=step.groups,
                    rollouts=batch.rollouts,
                    tokens=int((batch.sample_index >= 0).sum()),
                    rows=batch.token_ids.shape[0],
                    longest=max(batch.spans[:, 2].tolist(), default=0),
                    samples=step.samples,
                    trained_tokens=step.trained_tokens,
                )
                if checkpoint is not None and step.number % options.save_every == 0:
                    if rank == 0:
                        temporary = checkpoint.with_suffix(".new")
                        temporary.write_text(json.dumps(batches.state_dict()))
                        temporary.replace(checkpoint)
                        write(saved=step.number)
                    batches.commit()
            write(ended=True, left_over=batches.left_over)
    except Exception as error:
        write(error=type(error).__name__, text=str(error))
        raise


if __name__ == "__main__":
    main(Options(**json.loads(sys.argv[1])))
