"""Reports a run from TRL's logs: a picture with its curves, and a line."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from examples.grpo_color_codeword.curves import Curve, svg
from rollout.config.load import Config
from rollout.rundir.directory import RunDirectory

CHECKPOINTS = "checkpoints"
"""The directory of TRL's checkpoints in the run's directory."""
PICTURE = "learning.svg"
"""The file with the curves in the run's directory."""
DIFFERENCE = "sampling/sampling_logp_difference/max"
"""TRL's name for the largest difference between the log-probs of engine and trainer."""
SECONDS = "step_seconds"
"""Our name for the seconds of a step, with the wait for its rollouts."""
_SMOOTHING_STEPS = 5

StepLog = Mapping[str, float]
"""What TRL logs about one step."""


def steps_of(log_history: Sequence[StepLog]) -> list[StepLog]:
    """Return the logs of the steps, without TRL's summary at the end."""
    return [log for log in log_history if "reward" in log]


def smoothed_reward(steps: Sequence[StepLog]) -> float:
    """Return the mean reward of the last five batches; 0 if there are fewer."""
    rewards = [step["reward"] for step in steps[-_SMOOTHING_STEPS:]]
    return fmean(rewards) if len(rewards) == _SMOOTHING_STEPS else 0.0


def curves(batch: int) -> tuple[Curve[StepLog], ...]:
    """Return the curves of a run with this number of rollouts in each step."""
    return (
        Curve("reward, mean of the batch", lambda step: step["reward"], "{:.3f}", "#2563eb"),
        Curve("largest |sampler − trainer| log-prob", lambda step: step[DIFFERENCE], "{:.1e}", "#dc2626", 1e-8),
        Curve("staleness, versions", lambda step: step["rollout/staleness/max"], "{:.0f}", "#9333ea"),
        Curve("rollouts per second", lambda step: batch / step[SECONDS], "{:.1f}", "#059669"),
    )


def report(steps: Sequence[StepLog], run: RunDirectory, config: Config) -> None:
    """Draw the curves, and print a line about all steps."""
    seconds = sum(step[SECONDS] for step in steps)
    title = f"TRL, seed {config.tasks.seed}: {smoothed_reward(steps):.3f} after {seconds:.0f} s"
    picture = run.path / PICTURE
    picture.write_text(svg(steps, title, curves(config.policy.batch)), "utf-8")
    print(
        f"{title}; first batch {steps[0]['reward']:.3f}, {len(steps)} steps, largest log-prob difference "
        f"{max(step[DIFFERENCE] for step in steps):.1e}; curves: {picture}",
        flush=True,
    )
