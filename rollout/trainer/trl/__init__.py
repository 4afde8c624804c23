"""Trains with TRL's `GRPOTrainer` from the queue. It needs the extra `trl`.

    args = GRPOConfig(output_dir="checkpoints", max_steps=500, …)         # first, because it starts torch.distributed
    materializer = Materializer.from_pretrained(checkpoint)
    with open_batches(url, groups_per_step=16, packing=None, materializer=materializer) as batches:
        trainer = RolloutGRPOTrainer(checkpoint, batches, args=args, publish=publisher.publish)
        trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

Rewards, groups and log-probs come from the queue, and TRL computes the loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rollout.trainer.trl.errors import UnsupportedConfig, WrongCheckpoint, WrongLogprobs
from rollout.trainer.trl.installed import require_trl

if TYPE_CHECKING:
    from rollout.trainer.trl.checkpoints import last_checkpoint
    from rollout.trainer.trl.trainer import RolloutGRPOTrainer

_LAZY_EXPORTS = {
    "RolloutGRPOTrainer": "rollout.trainer.trl.trainer",
    "last_checkpoint": "rollout.trainer.trl.checkpoints",
}

__all__ = ["RolloutGRPOTrainer", "UnsupportedConfig", "WrongCheckpoint", "WrongLogprobs", "last_checkpoint"]


def __getattr__(name: str) -> Any:
    # TRL is checked before the first module imports it, so that the error names the extra and the version.
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'rollout.trainer.trl' has no attribute {name!r}")
    require_trl()
    return getattr(import_module(_LAZY_EXPORTS[name]), name)
