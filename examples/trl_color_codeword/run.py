"""Trains the codeword policy with TRL. Starts an engine, the ranks with `accelerate launch`, and a launch.

    python -m examples.trl_color_codeword.run                          # one rank, until the target is reached
    python -m examples.trl_color_codeword.run --ranks 2
    python -m examples.trl_color_codeword.run --resume runs/codeword-… # continues from the last checkpoint

Ctrl-C, SIGTERM and SIGHUP stop all of them. If this program is killed, all of them are killed too.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from examples.grpo_color_codeword.checkpoint import make_policy
from examples.grpo_color_codeword.processes import (
    TrainingProcessEnded,
    exit_on_signals,
    launch_log,
    log_excerpt,
    running_launch,
    running_process,
    transformers_sampler,
)
from examples.grpo_color_codeword.training import CONFIG
from examples.trl_color_codeword.report import CHECKPOINTS
from rollout.config.load import Config
from rollout.errors import RolloutError
from rollout.log import log_warnings_to_stderr
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig, create_run, resume_run
from rollout.trainer import Consumption, PolicyPublisher
from rollout.trainer.trl import last_checkpoint
from rollout.trainer.weights.from_config import publisher_settings

_POLL_SECONDS = 0.2
_RANK_VARIABLES = {"ACCELERATE_USE_CPU": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""With `--cpu`, `accelerate launch` needs MPI to start two ranks. With this variable, it does not."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, help="how many ranks to start")
    parser.add_argument("--target", type=float, default=0.95, help="stop at this mean reward of five batches")
    parser.add_argument("--steps", type=int, default=150, help="stop after this many steps, without success")
    parser.add_argument("--save-steps", type=int, default=10, help="the number of steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights, the tasks and the sampling")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the directory for the run's directory")
    parser.add_argument("--resume", type=Path, help="the directory of a run to continue")
    parser.add_argument("--workers", type=int, default=2, help="how many worker processes to start")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML")
    return parser.parse_args(argv)


def train(options: argparse.Namespace) -> None:
    """Start everything, and wait until the ranks have ended.

    Raises:
        TrainingProcessEnded: a process that training needs has failed.
    """
    runs = options.runs.resolve() if options.resume is None else options.resume.resolve().parent
    runs.mkdir(parents=True, exist_ok=True)
    checkpoint = first_checkpoint(options, runs)
    with transformers_sampler(checkpoint, runs, runs / "engine.log") as engine:
        engine_setting = f'engine.urls=["{engine}"]'
        if options.resume is None:
            run, [launch_config] = create_training_run(options, checkpoint, runs, engine_setting)
        else:
            run, [launch_config] = resume_run(options.resume, [engine_setting])
        print(f"run {run.path}", flush=True)
        publish_saved_version(run, launch_config.config)
        with (
            running_process(ranks_command(run, options, engine_setting), variables=_RANK_VARIABLES) as ranks,
            running_launch(run.path, options.workers, "--set", engine_setting) as launch,
        ):
            while (code := ranks.poll()) is None:
                if launch.poll():
                    raise TrainingProcessEnded(
                        f"the launch ended with {launch.returncode}. {log_excerpt(launch_log(run.path))}"
                    )
                time.sleep(_POLL_SECONDS)
            if code:
                raise TrainingProcessEnded(f"the ranks ended with {code}; they printed the reason above.")


def first_checkpoint(options: argparse.Namespace, runs: Path) -> Path:
    """Return the checkpoint with which the run begins or began. It stays, because the engine of a resume needs it."""
    if options.resume is not None:
        _, [launch_config] = resume_run(options.resume, ())
        return launch_config.config.model.path
    checkpoint = Path(tempfile.mkdtemp(prefix="policy-", dir=runs))
    make_policy(checkpoint, seed=options.seed)
    return checkpoint


def create_training_run(
    options: argparse.Namespace, checkpoint: Path, runs: Path, engine_setting: str
) -> tuple[RunDirectory, list[LaunchConfig]]:
    """Create the run, with the settings of the command line."""
    settings = {
        "engine.sampling.seed": options.seed,
        "model.path": checkpoint,
        "run.directory": runs,
        "tasks.seed": options.seed,
    }
    overrides = [engine_setting, *(f"{key}={value}" for key, value in settings.items()), *options.set]
    return create_run([CONFIG], overrides)


def publish_saved_version(run: RunDirectory, config: Config) -> None:
    """Publish the version that is trained next, so that the engine has it before a worker looks for it."""
    saved = last_checkpoint(run.path / CHECKPOINTS)
    checkpoint = config.model.path if saved is None else Path(saved)
    version = 0 if saved is None else int(checkpoint.name.rpartition("-")[2])
    consumption = {config.run.name: Consumption(consumed=version * config.policy.batch)}
    with PolicyPublisher(publisher_settings([config], run.path)) as publisher:
        publisher.publish(
            version, lambda directory: shutil.copy(checkpoint / "model.safetensors", directory), consumption
        )


def ranks_command(run: RunDirectory, options: argparse.Namespace, engine_setting: str) -> list[str]:
    """Return the command that starts the ranks on this machine."""
    flags = [f"--num_processes={options.ranks}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    if options.ranks > 1:
        flags += ["--multi_gpu", "--main_process_port=0"]  # also starts ranks without a GPU; see `_RANK_VARIABLES`
    program = [
        "-m",
        "examples.trl_color_codeword.train",
        str(run.path),
        f"--set={engine_setting}",
        f"--ranks={options.ranks}",
    ]
    program += [f"--target={options.target}", f"--steps={options.steps}", f"--save-steps={options.save_steps}"]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, *program]


def main() -> int:
    """Train, and return the exit code: 0 if training ended without an error."""
    options = parse_arguments()
    exit_on_signals()
    log_warnings_to_stderr()
    try:
        train(options)
    except RolloutError as error:
        print(f"training failed: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
