"""Trains a tiny Qwen3-VL with random weights on a codeword of colours, through the whole pipeline.

    python -m examples.grpo_color_codeword.train                     # the engine is `rollout serve transformers`
    python -m examples.grpo_color_codeword.train --sampler vllm --set environment.ask=at_end
    python -m examples.grpo_color_codeword.train --agent             # a program plays over HTTP

At least five processes run: this trainer, an engine, `rollout launch` and its workers. Training ends when the mean
reward of five batches reaches the target. It writes its curves as a picture into the run's directory. If engine and
trainer disagree about the log-probs of a step, training says what is wrong, and ends with 1.
"""

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.live import Live
from transformers.utils import logging as transformers_logging

from examples.grpo_color_codeword.checkpoint import make_policy
from examples.grpo_color_codeword.curves import CURVES, svg, table
from examples.grpo_color_codeword.processes import exit_on_signals, transformers_sampler, vllm_sampler
from examples.grpo_color_codeword.training import AGENT_CONFIG, CONFIG, Training, TrainingStep
from rollout.errors import RolloutError

_SMOOTHING_STEPS = 5


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights, the tasks and the sampling")
    parser.add_argument("--sampler", choices=("transformers", "vllm"), default="transformers", help="the engine")
    parser.add_argument("--agent", action="store_true", help="let an agent program play, in place of the environment")
    parser.add_argument("--vllm", type=Path, help="vLLM's executable, for example of another environment")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the directory for the run's directory")
    parser.add_argument("--workers", type=int, default=2, help="how many worker processes to start")
    parser.add_argument("--target", type=float, default=0.95, help="stop at this mean reward of five batches")
    parser.add_argument("--steps", type=int, default=150, help="stop after this many steps, without success")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML")
    return parser.parse_args(argv)


def train(options: argparse.Namespace) -> list[TrainingStep]:
    """Train until the target is reached. Write the curves and a complete checkpoint into the run's directory."""
    torch.manual_seed(options.seed)
    # Matrices of this size are slower on several cores, and the other processes need the cores.
    torch.set_num_threads(1)
    # Weights are saved after every step, each time with a progress bar.
    transformers_logging.disable_progress_bar()
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place, "policy")
        make_policy(checkpoint, seed=options.seed)
        with start_sampler(options, checkpoint, runs, runs / "engine.log") as engine:
            # vLLM 0.32 on a CPU crashes if a request has a seed and its prompt is computed in chunks.
            seed_overrides = [f"engine.sampling.seed={options.seed}"] if options.sampler == "transformers" else []
            overrides = [*seed_overrides, *options.set]
            training = Training(
                checkpoint,
                runs,
                engine,
                seed=options.seed,
                workers=options.workers,
                config=AGENT_CONFIG if options.agent else CONFIG,
                overrides=overrides,
            )
            with training:
                steps = train_with_display(training, options)
        copy_missing_files(training.run.weights_path, checkpoint)
    player = ", agent" if options.agent else ""
    title = (
        f"{options.sampler}{player}, seed {options.seed}: {smoothed_reward(steps):.3f} after {steps[-1].seconds:.0f} s"
    )
    picture = training.run.path / "learning.svg"
    picture.write_text(svg(steps, title, CURVES), "utf-8")
    print(f"{title}; {summary(steps)}; curves: {picture}")
    return steps


def start_sampler(options: argparse.Namespace, checkpoint: Path, runs: Path, log: Path) -> AbstractContextManager[str]:
    """Return a context manager that runs the engine and yields its root URL."""
    if options.sampler == "vllm":
        return vllm_sampler(checkpoint, runs, log, options.vllm)
    return transformers_sampler(checkpoint, runs, log)


def copy_missing_files(weights: Path, checkpoint: Path) -> None:
    """Copy what an engine needs besides weights into their directory: tokenizer, template, processor."""
    for file in checkpoint.iterdir():
        if not (weights / file.name).exists():
            shutil.copyfile(file, weights / file.name)


def train_with_display(training: Training, options: argparse.Namespace) -> list[TrainingStep]:
    """Train until the target is reached, and draw the curves."""
    steps: list[TrainingStep] = []
    printed_warnings: set[str] = set()
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False) as live:
        while smoothed_reward(steps) < options.target and len(steps) < options.steps:
            step = training.step()
            steps.append(step)
            if console.is_terminal:
                live.update(
                    table(steps, f"step {step.number}, {step.seconds:.0f} s, {comparison_text(step)}"), refresh=True
                )
            else:
                console.print(step_line(step), highlight=False, soft_wrap=True)
            for warning in step.update_stats.warnings:
                if warning.kind not in printed_warnings:
                    printed_warnings.add(warning.kind)
                    console.print(f"warning: step {step.number}: {warning.text}", markup=False, soft_wrap=True)
    return steps


def smoothed_reward(steps: Sequence[TrainingStep]) -> float:
    """Return the mean reward of the last five batches; 0 if there are fewer."""
    return fmean(step.reward for step in steps[-_SMOOTHING_STEPS:]) if len(steps) >= _SMOOTHING_STEPS else 0.0


def step_line(step: TrainingStep) -> str:
    """Return a line about a step, for a log."""
    return (
        f"step {step.number:3}  {step.seconds:5.1f} s  reward {step.reward:.3f}  "
        f"difference {step.update_stats.comparison.max_difference:.1e}  {comparison_text(step)}  "
        f"staleness {step.staleness}  {step.rollouts_per_second:.1f} rollouts/s"
    )


def comparison_text(step: TrainingStep) -> str:
    """Return what was compared in a step, and which tokens the newest version sampled or the loss clips."""
    comparison = step.update_stats.comparison
    return (
        f"{comparison.compared_tokens} tokens compared, {comparison.published_share:.0%} by the newest version, "
        f"{comparison.clipped_share:.0%} clipped"
    )


def summary(steps: Sequence[TrainingStep]) -> str:
    """Return a line about all steps."""
    comparisons = [step.update_stats.comparison for step in steps]
    trained = sum(comparison.trained_tokens for comparison in comparisons)
    newest = sum(comparison.published_tokens for comparison in comparisons)
    clipped = sum(comparison.clipped_tokens for comparison in comparisons)
    differences = [comparison.max_difference for comparison in comparisons if comparison.compared_tokens]
    return (
        f"first batch {steps[0].reward:.3f}, {len(steps)} steps, "
        f"largest log-prob difference {max(differences, default=math.nan):.1e} "
        f"in {sum(comparison.compared_tokens for comparison in comparisons)} compared tokens of {trained}, "
        f"{newest / trained:.1%} sampled by the newest version, {clipped / trained:.1%} clipped, "
        f"{sum(step.violations for step in steps)} violations, {sum(step.failed for step in steps)} failed rollouts"
    )


def main() -> int:
    """Train, and return the exit code: 0 if the target was reached."""
    options = parse_arguments()
    exit_on_signals()
    try:
        steps = train(options)
    except RolloutError as error:
        print(f"training failed: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if smoothed_reward(steps) >= options.target else 1


if __name__ == "__main__":
    sys.exit(main())
