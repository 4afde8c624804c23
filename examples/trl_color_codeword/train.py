"""The program of one rank, which trains the codeword policy with TRL. `run.py` starts it with `accelerate launch`.

The batches come from the queue of the run. TRL does the rest: the loss, the optimiser, the logs and the checkpoints.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig

from examples.grpo_color_codeword.environment import color_ids
from examples.grpo_color_codeword.grpo import CLIP, LEARNING_RATE
from examples.grpo_color_codeword.processes import TrainingProcessEnded, end_with_parent
from examples.grpo_color_codeword.training import thresholds_for
from examples.trl_color_codeword.report import (
    CHECKPOINTS,
    DIFFERENCE,
    SECONDS,
    StepLog,
    report,
    smoothed_reward,
    steps_of,
)
from rollout.config.load import Config
from rollout.errors import RolloutError
from rollout.log import log_to_json_file
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import resume_run
from rollout.rundir.queues import RunQueues
from rollout.trainer import Consumption, Materializer, PolicyPublisher, open_batches
from rollout.trainer.trl import RolloutGRPOTrainer, last_checkpoint
from rollout.trainer.weights.directory import Saver
from rollout.trainer.weights.from_config import publisher_settings


class CodewordTraining:
    """The training of one rank. The first rank also publishes the weights.

    Attributes:
        rank: the number of the rank.
    """

    def __init__(self, run: RunDirectory, config: Config, options: argparse.Namespace) -> None:
        self._run, self._config, self._options = run, config, options
        # It also starts the process group, which `open_batches` uses.
        self._settings = training_settings(run, config, options)
        self.rank: int = self._settings.process_index

    def train(self) -> list[StepLog]:
        """Train until the target is reached or the run has ended; return the logs of all steps."""
        checkpoint = self._config.model.path
        batches = open_batches(
            RunQueues(self._config, self._run).trajectories,
            groups_per_step=self._config.policy.batch // self._config.tasks.group_size,
            packing=None,
            materializer=Materializer.from_pretrained(checkpoint, backend="pil"),
        )
        with ExitStack() as stack:
            publisher = None
            if self.rank == 0:
                publisher = stack.enter_context(PolicyPublisher(publisher_settings([self._config], self._run.path)))

            def publish(version: int, save: Saver) -> None:
                if publisher is not None:
                    # A step uses whole groups, with their failed rollouts. So the count follows from the version.
                    consumption = Consumption(consumed=version * self._config.policy.batch)
                    publisher.publish(version, save, {self._config.run.name: consumption})

            stack.enter_context(batches)
            trainer = RolloutGRPOTrainer(
                AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32),
                batches,
                args=self._settings,
                publish=publish,
                allowed_token_ids=color_ids(),
                thresholds=thresholds_for(self._config.policy.max_staleness, is_first_step=False),
                callbacks=[Progress(self._options.target)],
            )
            trainer.remove_callback(PrinterCallback)  # `Progress` prints less
            trainer.train(resume_from_checkpoint=last_checkpoint(self._settings.output_dir))
        return steps_of(trainer.state.log_history)


def training_settings(run: RunDirectory, config: Config, options: argparse.Namespace) -> GRPOConfig:
    """Return TRL's settings. They make the same steps as the loop of examples/grpo_color_codeword."""
    return GRPOConfig(
        output_dir=str(run.path / CHECKPOINTS),
        max_steps=options.steps,
        save_steps=options.save_steps,
        save_total_limit=2,
        per_device_train_batch_size=config.policy.batch // options.ranks,
        num_generations=2,  # TRL requires it; the groups come from the queue
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        epsilon=CLIP,
        loss_type="dapo",
        temperature=config.engine.sampling.temperature,
        seed=config.tasks.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
    )


class Progress(TrainerCallback):
    """Prints a line about each step, measures its time, and ends the training when the target is reached."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._logged_at = time.monotonic()

    def on_log(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_log`."""
        log = state.log_history[-1]
        if "reward" not in log:
            return  # TRL's summary at the end
        if log["rollout/trained_tokens"] == 0:
            raise TrainingProcessEnded(
                f"every rollout of step {state.global_step} failed; `rollout inspect` shows why."
            )
        now = time.monotonic()
        log[SECONDS], self._logged_at = now - self._logged_at, now
        if state.is_world_process_zero:
            print(
                f"step {state.global_step:3}  {log[SECONDS]:4.1f} s  reward {log['reward']:.3f}  "
                f"difference {log[DIFFERENCE]:.1e}",
                flush=True,
            )
        if smoothed_reward(steps_of(state.log_history)) >= self._target:
            control.should_training_stop = control.should_save = True


def main() -> int:
    """Train, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run")
    parser.add_argument("--ranks", type=int, required=True, help="the number of ranks")
    parser.add_argument("--target", type=float, required=True, help="stop at this mean reward of five batches")
    parser.add_argument("--steps", type=int, required=True, help="stop after this many steps, without success")
    parser.add_argument("--save-steps", type=int, required=True, help="the number of steps between checkpoints")
    options = parser.parse_args()
    end_with_parent()
    transformers_logging.disable_progress_bar()  # weights are saved after every step
    torch.set_num_threads(1)  # matrices of this size are slower on several cores
    run, [launch_config] = resume_run(options.run, options.set)
    training = CodewordTraining(run, launch_config.config, options)
    with log_to_json_file(run.path / f"trainer-{training.rank}.jsonl", run=run.run_id):
        try:
            steps = training.train()
        except RolloutError as error:
            print(f"rank {training.rank}: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    if training.rank == 0 and steps:
        report(steps, run, launch_config.config)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
