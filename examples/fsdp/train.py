"""The program of one rank, which trains a sharded policy with the other ranks. `run.py` starts it with torchrun.

Every step is saved before it is published. So an engine never has weights that a killed trainer would have to make
again. After a restart, the rollouts that wait in the queue are from the weights that train on them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from examples.fsdp.checkpoints import Progress, load_checkpoint, save_checkpoint
from examples.fsdp.learner import ShardedLearner
from examples.grpo_color_codeword.environment import color_ids
from examples.grpo_color_codeword.processes import TrainingProcessEnded, end_with_parent
from examples.grpo_color_codeword.training import thresholds_for
from rollout.errors import RolloutError
from rollout.log import log_to_json_file
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig, resume_run
from rollout.rundir.queues import RunQueues
from rollout.trainer import (
    ComparisonFinding,
    Consumption,
    LogprobComparison,
    Materializer,
    PolicyPublisher,
    RankStep,
    evaluate,
    open_batches,
)
from rollout.trainer.weights.from_config import publisher_settings

STEPS_FILE = "steps.jsonl"
"""The file in the run's directory with a report of each step. If a step is repeated, its last line counts."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""The file in the run's directory with the result of each evaluation."""
_HELD_OUT_SETTINGS = ("tasks.count=16", "tasks.group_size=1", "run.name=held-out")
_EVALUATION_TIMEOUT = 300.0
_COLLECTIVE_TIMEOUT = timedelta(seconds=120)


class RankTrainer:
    """One rank of the trainer. The first rank also publishes, evaluates and reports."""

    def __init__(self, run: RunDirectory, launch_config: LaunchConfig, evaluate_every: int) -> None:
        self._run, self._launch_config, self._config = run, launch_config, launch_config.config
        self._evaluate_every = evaluate_every
        self._checkpoints = run.path / "checkpoints"
        self._learner = ShardedLearner(self._config.model.path, color_ids())
        self._printed_warnings: set[str] = set()
        self._publisher: PolicyPublisher | None = None
        self._version = 0

    def train(self) -> None:
        """Continue from the last checkpoint, and train until all rollouts of the run are used."""
        batches = open_batches(
            RunQueues(self._config, self._run).trajectories,
            groups_per_step=self._config.policy.batch // self._config.tasks.group_size,
            packing=None,
            materializer=Materializer.from_pretrained(self._config.model.path, backend="pil"),
        )
        progress = load_checkpoint(self._checkpoints, self._learner)
        with ExitStack() as stack:
            if dist.get_rank() == 0:
                settings = publisher_settings([self._config], self._run.path)
                self._publisher = stack.enter_context(PolicyPublisher(settings))
            stack.enter_context(batches)
            if progress is not None:
                self._version = progress.version
                batches.load_state_dict(progress.reader)
            self._publish()  # before the first rollout is read
            batches.version = self._version
            for step in batches:
                if not step.trained_tokens:  # on all ranks
                    raise TrainingProcessEnded(
                        f"every rollout of step {step.number} failed; `rollout inspect {self._run.path}` shows why."
                    )
                # After a restart, the number of the step continues from the loaded state.
                thresholds = thresholds_for(self._config.policy.max_staleness, is_first_step=step.number == 1)
                comparison = self._learner.step(step, self._version, thresholds)
                self._version += 1
                self._report(step, comparison, comparison.findings(thresholds))
                save_checkpoint(self._checkpoints, self._learner, Progress(self._version, batches.state_dict()))
                batches.commit()
                self._publish()
                batches.version = self._version
                if self._publisher is not None and self._version % self._evaluate_every == 0:
                    self._evaluate()

    def _publish(self) -> None:
        """Gather the weights on the first rank, which publishes them."""
        weights = self._learner.full_weights()
        if self._publisher is None:
            return
        # A step uses whole groups, with their failed rollouts. So no other rollouts are needed in their place.
        consumption = {self._config.run.name: Consumption(consumed=self._version * self._config.policy.batch)}
        self._publisher.publish(
            self._version, lambda directory: self._learner.save_pretrained(directory, weights), consumption
        )

    def _report(self, step: RankStep, comparison: LogprobComparison, warnings: Sequence[ComparisonFinding]) -> None:
        """Print and save a line about a step, on the first rank. The checkpoint of the step does not exist yet."""
        if self._publisher is None:
            return
        print(
            f"step {self._version:3}  reward {step.reward:.3f}  difference {comparison.max_difference:.1e}  "
            f"compared {comparison.compared_tokens}/{comparison.trained_tokens} tokens",
            flush=True,
        )
        for warning in warnings:
            if warning.kind not in self._printed_warnings:
                self._printed_warnings.add(warning.kind)
                print(f"warning: {warning.text}", flush=True)
        self._append(
            STEPS_FILE,
            {
                "step": self._version,
                "reward": step.reward,
                "groups": step.groups,
                "samples": step.samples,
                "trained_tokens": comparison.trained_tokens,
                "compared_tokens": comparison.compared_tokens,
                "max_difference": comparison.max_difference,
                "clipped_share": comparison.clipped_share,
            },
        )

    def _evaluate(self) -> None:
        """Play tasks that are not trained on, and report the result. The other ranks wait in their next step."""
        overrides = [
            *self._launch_config.overrides,
            *_HELD_OUT_SETTINGS,
            f"tasks.seed={self._config.tasks.seed + 1}",
            f"run.directory={self._run.path / 'evaluations'}",
        ]
        evaluation = evaluate(self._launch_config.file, overrides=overrides, timeout=_EVALUATION_TIMEOUT)
        print(f"held-out reward {evaluation.reward:.3f} of version {self._version}", flush=True)
        self._append(EVALUATIONS_FILE, {"version": self._version, "reward": evaluation.reward})

    def _append(self, file_name: str, report: Mapping[str, Any]) -> None:
        with (self._run.path / file_name).open("a") as file:
            file.write(json.dumps(report) + "\n")


def main() -> int:
    """Train, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of the run")
    parser.add_argument("--evaluate-every", type=int, required=True, help="the number of steps between evaluations")
    options = parser.parse_args()
    end_with_parent()
    transformers_logging.disable_progress_bar()  # weights are saved after every step
    torch.set_num_threads(1)  # matrices of this size are slower on several cores
    dist.init_process_group("gloo", timeout=_COLLECTIVE_TIMEOUT)
    run, [launch_config] = resume_run(options.run, ())
    with log_to_json_file(run.path / f"trainer-{dist.get_rank()}.jsonl", run=run.run_id):
        try:
            RankTrainer(run, launch_config, options.evaluate_every).train()
        except RolloutError as error:
            print(f"rank {dist.get_rank()}: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
