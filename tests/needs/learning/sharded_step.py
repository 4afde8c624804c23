"""One rank that takes one step of `ShardedLearner` and saves the gradients. torchrun starts it.

sharded_step.py SAMPLES CHECKPOINT RESULT RANKS        RANKS has one digit for each sample: the rank that gets it
"""

import math
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from examples.fsdp.learner import ShardedLearner
from rollout.trainer import ComparisonThresholds, Materializer, RankStep, TrainingSample, collate

ANYTHING = ComparisonThresholds(mean_difference=math.inf, published_share=0.0)


def take_step(samples: list[TrainingSample], checkpoint: Path, rank_of_sample: str) -> dict[str, torch.Tensor]:
    own = [at for at, rank in enumerate(rank_of_sample) if int(rank) == dist.get_rank()]
    batch = collate(
        [samples[at] for at in own],
        advantages=[1.0 - at for at in own],
        min_rows=len(samples),
        materializer=Materializer.from_pretrained(checkpoint, backend="pil"),
    )
    vocabulary = torch.arange(int(max(sample.token_ids.max() for sample in samples)) + 1).tolist()
    learner = ShardedLearner(checkpoint, vocabulary, ANYTHING)
    trained_tokens = sum(int(sample.mask.sum()) for sample in samples)
    learner.step(
        RankStep(
            number=1,
            groups=(),
            samples=len(samples),
            trained_tokens=trained_tokens,
            reward=0.0,
            reward_std=0.0,
            rewards={},
            uniform_groups=0,
            failed=0,
            has_images=True,
            batch=batch,
        ),
        0,
    )
    return {name: parameter.grad.full_tensor() for name, parameter in learner.model.named_parameters()}


def main() -> None:
    samples_file, checkpoint, result, rank_of_sample = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gradients = take_step(pickle.loads(Path(samples_file).read_bytes()), Path(checkpoint), rank_of_sample)
    if dist.get_rank() == 0:
        torch.save(gradients, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
