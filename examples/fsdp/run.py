"""Trains the codeword policy on several ranks. Starts an engine, the ranks with torchrun, and a launch.

    python -m examples.fsdp.run                              # two ranks, until all rollouts are used
    python -m examples.fsdp.run --ranks 4 --steps 200

Ctrl-C, SIGTERM and SIGHUP stop all of them. If a rank dies, torchrun starts all ranks again, and they continue from the
last checkpoint.
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
from rollout.errors import RolloutError
from rollout.log import log_warnings_to_stderr
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import create_run
from rollout.trainer import PolicyPublisher
from rollout.trainer.weights.from_config import publisher_settings

_GROUPS_PER_STEP = 8
_GROUP_SIZE = 8
_POLL_SECONDS = 0.2
_TORCHRUN_VARIABLES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Every restart needs a new store: in the old one, torch 2.13 finds the addresses of the ranks that have died."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="how many ranks to start")
    parser.add_argument("--steps", type=int, default=150, help="how many steps the rollouts of the run are enough for")
    parser.add_argument("--max-restarts", type=int, default=3, help="how often torchrun starts all ranks again")
    parser.add_argument("--evaluate-every", type=int, default=20, help="the number of steps between evaluations")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights, the tasks and the sampling")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the directory for the run's directory")
    parser.add_argument("--workers", type=int, default=2, help="how many worker processes to start")
    return parser.parse_args(argv)


def train(options: argparse.Namespace) -> None:
    """Start everything, and wait until the ranks have trained on all rollouts.

    Raises:
        TrainingProcessEnded: a process that training needs has failed.
    """
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place, "policy")
        make_policy(checkpoint, seed=options.seed)
        with transformers_sampler(checkpoint, runs, runs / "engine.log") as engine:
            run = create_training_run(options, checkpoint, runs, engine)
            print(f"run {run.path}", flush=True)
            with (
                running_process(torchrun(run, options), variables=_TORCHRUN_VARIABLES) as ranks,
                running_launch(run.path, options.workers) as launch,
            ):
                while (code := ranks.poll()) is None:
                    if launch.poll():
                        raise TrainingProcessEnded(
                            f"the launch ended with {launch.returncode}. {log_excerpt(launch_log(run.path))}"
                        )
                    time.sleep(_POLL_SECONDS)
                if code:
                    raise TrainingProcessEnded(f"torchrun ended with {code}; its ranks printed the reason above.")


def create_training_run(options: argparse.Namespace, checkpoint: Path, runs: Path, engine: str) -> RunDirectory:
    """Create the run, and publish the first version, so that no rollout is played before the engine has a version."""
    settings = {
        "engine.urls": f'["{engine}"]',
        "engine.sampling.seed": options.seed,
        "model.path": checkpoint,
        "run.directory": runs,
        "tasks.seed": options.seed,
        "tasks.count": options.steps * _GROUPS_PER_STEP,
        "tasks.group_size": _GROUP_SIZE,
        "policy.batch": _GROUPS_PER_STEP * _GROUP_SIZE,
    }
    run, [launch_config] = create_run([CONFIG], [f"{key}={value}" for key, value in settings.items()])
    with PolicyPublisher(publisher_settings([launch_config.config], run.path)) as publisher:
        publisher.publish(0, lambda directory: shutil.copy(checkpoint / "model.safetensors", directory))
    return run


def torchrun(run: RunDirectory, options: argparse.Namespace) -> list[str]:
    """Return the command that starts the ranks on this machine."""
    flags = ["--standalone", f"--nproc-per-node={options.ranks}", f"--max-restarts={options.max_restarts}"]
    program = ["-m", "examples.fsdp.train", str(run.path), f"--evaluate-every={options.evaluate_every}"]
    return [sys.executable, "-m", "torch.distributed.run", *flags, *program]


def main() -> int:
    """Train, and return the exit code."""
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
