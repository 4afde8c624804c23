"""A trainer of several ranks, for the tests of `open_batches`. Each rank writes a line of JSON for each step.

Usage: `torchrun trainer.py OPTIONS`, where OPTIONS is JSON, see `Options`. Or call `run_rank` in each process. The
weights are the list of the groups that were trained on, so a checkpoint shows whether each group was trained once.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist

from rollout.trainer import Batch, Materializer, RankBatches, ReaderSettings, open_batches


@dataclass
class Options:
    """What a test wants.

    Attributes:
        logs: the directory of the logs, one file for each rank.
        url: the first argument of `open_batches`.
        arguments: other arguments of `open_batches`, on all ranks.
        rank_arguments: arguments that only one rank passes, by the rank.
        store: the file through which the ranks find each other without torchrun.
        checkpoint: the file of the checkpoint; empty: no checkpoints.
        save_every: the number of steps between two checkpoints.
        last_step: the step after which the loop is left; 0: never.
        processor: the processor configuration of the checkpoint; empty: no pixels.
        signals: the rank, the step, the place (`trained` or `saved`) and the signal that this rank sends to itself. The
            first entry holds for the first start, the second for the first restart of torchrun, and so on.
        fail: the rank and the step of an exception in the training loop.
        leave: the rank and the step at which this rank leaves its loop.
        group: the ranks of the process group; empty: all.
        group_of_its_own: the rank that has one process group more than the others; -1: none.
        openings: how often each rank opens and reads its batches.
    """

    logs: str
    url: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    rank_arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    store: str = ""
    checkpoint: str = ""
    save_every: int = 5
    last_step: int = 0
    processor: dict[str, Any] = field(default_factory=dict)
    signals: list[tuple[int, int, str, int]] = field(default_factory=list)
    fail: tuple[int, int] = (-1, -1)
    leave: tuple[int, int] = (-1, -1)
    group: list[int] = field(default_factory=list)
    group_of_its_own: int = -1
    openings: int = 1


class Trainer:
    """One rank."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rank = dist.get_rank()
        self.checkpoint = Path(options.checkpoint or os.devnull)
        self.trained: list[str] = []

    def run(self) -> None:
        """Train until the end; write the error that ends the training."""
        options = self.options
        arguments = options.arguments | options.rank_arguments.get(str(self.rank), {})
        if options.group:
            arguments["process_group"] = dist.new_group(options.group)
            if self.rank not in options.group:
                return
        if options.group_of_its_own == self.rank:
            dist.new_group([self.rank], use_local_synchronization=True)
        if options.processor:
            arguments["materializer"] = Materializer("qwen_vl", options.processor, images="missing", backend="pil")
        try:
            for _ in range(options.openings):
                with open_batches(options.url, settings=ReaderSettings(require_images=False), **arguments) as batches:
                    self.write(opened=dist.get_world_size())
                    self.load(batches)
                    self.train(batches)
                    self.write(ended=True, left_over=batches.left_over)
        except Exception as error:
            self.write(error=type(error).__name__, text=str(error))
            raise

    def train(self, batches: RankBatches) -> None:
        for step in batches:
            if list(self.options.fail) == [self.rank, step.number]:
                raise ValueError("the loss is not a number")
            self.trained += step.groups
            self.write(
                step=step.number,
                groups=step.groups,
                samples=step.samples,
                trained_tokens=step.trained_tokens,
                rollouts=[sample.rollout for sample in step.batch.samples],
                rows=len(step.batch.token_ids),
                lengths=step.batch.spans[:, 2].tolist(),
                digest=digest(step.batch),
            )
            self.interrupt(step.number, "trained")
            if self.options.checkpoint and step.number % self.options.save_every == 0:
                self.save(batches, step.number)
            if step.number == self.options.last_step or list(self.options.leave) == [self.rank, step.number]:
                return

    def load(self, batches: RankBatches) -> None:
        if self.checkpoint.is_file():
            saved = json.loads(self.checkpoint.read_text())
            self.trained = saved["weights"]
            batches.load_state_dict(saved["reader"])

    def save(self, batches: RankBatches, step: int) -> None:
        state = batches.state_dict()
        if self.rank == 0:
            temporary = self.checkpoint.with_suffix(".new")
            temporary.write_text(json.dumps({"weights": self.trained, "reader": state}))
            temporary.replace(self.checkpoint)
        self.interrupt(step, "saved")
        batches.commit()

    def interrupt(self, step: int, place: str) -> None:
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        for rank, at_step, at_place, number in self.options.signals[restarts : restarts + 1]:
            if (rank, at_step, at_place) == (self.rank, step, place):
                os.kill(os.getpid(), Signals(number))

    def write(self, **line: Any) -> None:
        with (Path(self.options.logs) / f"{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def digest(batch: Batch) -> str:
    assert batch.advantages is not None
    arrays = (batch.token_ids, batch.position_ids, batch.mask, batch.advantages)
    return blake2b(b"".join(array.numpy().tobytes() for array in arrays), digest_size=8).hexdigest()


def run_rank(options: str, rank: int, ranks: int) -> None:
    """Be one rank, in a process of its own; the ranks find each other through a file."""
    chosen = Options(**json.loads(options))
    with (Path(chosen.logs) / f"{rank}.output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{chosen.store}", rank=rank, world_size=ranks)
    Trainer(chosen).run()
    dist.destroy_process_group()


if __name__ == "__main__":  # under torchrun
    dist.init_process_group("gloo")
    Trainer(Options(**json.loads(sys.argv[1]))).run()
    dist.destroy_process_group()
