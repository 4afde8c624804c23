"""The trainer's loop: receive a batch, learn from it, publish the new version, report the step."""

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Self

from examples.grpo_color_codeword.environment import color_ids
from examples.grpo_color_codeword.grpo import Learner, UpdateStats, trainable_trajectories
from examples.grpo_color_codeword.processes import TrainingProcessEnded, launch_log, log_excerpt, running_launch
from rollout.log import log_to_json_file
from rollout.rundir.manifest import create_run
from rollout.rundir.queues import RunQueues
from rollout.trainer import (
    BlockingReader,
    ComparisonThresholds,
    Consumption,
    Group,
    ImagesUnreadable,
    Materializer,
    PolicyPublisher,
    check,
    staleness,
)
from rollout.trainer.weights.from_config import publisher_settings

CONFIG = Path(__file__).with_name("codeword.yaml")
AGENT_CONFIG = Path(__file__).with_name("codeword_agent.yaml")
_POLL_SECONDS = 0.5
_BATCH_TIMEOUT_SECONDS = 120.0
"""How many seconds a batch may take before training fails."""


@dataclass(frozen=True)
class TrainingStep:
    """The report of one training step.

    Attributes:
        number: the number of the step, from 1; it is also the version that the step published.
        reward: the mean reward of the batch.
        update_stats: what the step measured before it changed the weights.
        staleness: the highest staleness of a rollout in the batch, in versions.
        rollouts_per_second: rollouts per second of the whole step, with learning and publishing.
        violations: how many violations `rollout.trainer.check` found in the batch.
        failed: how many rollouts of the batch have no score.
        seconds: seconds since training started.
    """

    number: int
    reward: float
    update_stats: UpdateStats
    staleness: int
    rollouts_per_second: float
    violations: int
    failed: int
    seconds: float


class Training:
    """A run with a policy that learns. Use it in a `with` statement, and call `step` repeatedly.

    Attributes:
        run: the run's directory.
        learner: the policy and its optimiser.
    """

    def __init__(
        self,
        checkpoint: Path,
        runs: Path,
        engine: str,
        *,
        seed: int,
        workers: int,
        config: Path = CONFIG,
        overrides: Sequence[str] = (),
    ) -> None:
        run_settings = {
            "engine.urls": f'["{engine}"]',
            "model.path": checkpoint,
            "run.directory": runs,
            "tasks.seed": seed,
        }
        run, [launch_config] = create_run(
            [config], [*(f"{key}={value}" for key, value in run_settings.items()), *overrides]
        )
        self.run, self._config, self._workers = run, launch_config.config, workers
        materializer = Materializer.from_pretrained(checkpoint, backend="pil")
        self.learner = Learner(checkpoint, materializer, color_ids())
        self._publisher = PolicyPublisher(publisher_settings([self._config], run.path))
        self._reader = BlockingReader(RunQueues(self._config, run).trajectories)
        self._consumption = Consumption()
        self._version = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(log_to_json_file(self.run.path / "trainer.jsonl", run=self.run.run_id))
            stack.enter_context(self._publisher)
            stack.enter_context(self._reader)
            self._publish()
            self._launch = stack.enter_context(running_launch(self.run.path, self._workers))
            self._stack = stack.pop_all()
        self._started_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> TrainingStep:
        """Receive a batch, learn from it, and publish the new weights."""
        version, started_at = self._version, time.monotonic()
        self._reader.version = version
        groups = gather_batch(self._reader, self._launch, launch_log(self.run.path), rollouts=self._config.policy.batch)
        thresholds = thresholds_for(self._config.policy.max_staleness, is_first_step=self._consumption == Consumption())
        trainable = [group for group in groups if trainable_trajectories(group)]
        update_stats = self.learner.step(trainable, version, thresholds)
        trained_count = sum(len(trainable_trajectories(group)) for group in groups)
        total_count = sum(len(group.trajectories) for group in groups)
        self._version += 1
        self._consumption = Consumption(
            self._consumption.consumed + trained_count, self._consumption.discarded + total_count - trained_count
        )
        self._publish()
        # A longer run would save this state with its weights before the commit. This one is never resumed.
        self._reader.commit(self._reader.state_dict()["number"])
        now = time.monotonic()
        return measure_step(
            groups,
            update_stats,
            version,
            seconds=now - self._started_at,
            rollouts_per_second=total_count / (now - started_at),
        )

    def _publish(self) -> None:
        consumption = {self._config.run.name: self._consumption}
        self._publisher.publish(self._version, self.learner.model.save_pretrained, consumption)


def thresholds_for(max_staleness: int | None, *, is_first_step: bool) -> ComparisonThresholds:
    """Return what the log-probs of a step must keep: engine and trainer compute them in float32.

    Without staleness, the trainer's version samples every token. With staleness, all steps but the first may have no
    such token: if rollouts wait in the queue, each step gets some that are older than its version. When the first step
    of a run begins, only one version exists. So this step finds wrong version names with any staleness.
    """
    is_one_version = max_staleness == 0 or is_first_step
    return ComparisonThresholds(max_difference=1e-3, published_share=1.0 if is_one_version else 0.0)


def gather_batch(
    reader: BlockingReader, launch: subprocess.Popen[bytes], launch_log: Path, *, rollouts: int
) -> list[Group]:
    """Receive the groups of one batch.

    Raises:
        TrainingProcessEnded: the launch ended, the batch did not come in time, or all of its rollouts failed.
        ImagesUnreadable: this process cannot read the images of a rollout.
    """
    groups: list[Group] = []
    deadline = time.monotonic() + _BATCH_TIMEOUT_SECONDS
    while sum(len(group.trajectories) for group in groups) < rollouts:
        launch_ended = launch.poll() is not None  # before `receive_group`, which may still return its last groups
        if (group := reader.receive_group(timeout=_POLL_SECONDS)) is not None:
            groups.append(group)
        elif launch_ended:
            ending = f"the launch ended with {launch.returncode}. {log_excerpt(launch_log)}"
            raise TrainingProcessEnded(" ".join(filter(None, [_failures_of(groups), ending])))
        elif time.monotonic() > deadline:
            raise TrainingProcessEnded(
                f"the batch was not complete within {_BATCH_TIMEOUT_SECONDS:g} s. {log_excerpt(launch_log)}"
            )
    for error in (trajectory.error for group in groups for trajectory in group.trajectories):
        if error and error["type"] == ImagesUnreadable.__name__:
            raise ImagesUnreadable(error["message"])
    if failures := _failures_of(groups):
        raise TrainingProcessEnded(failures)
    return groups


def _failures_of(groups: Sequence[Group]) -> str:
    """Return a sentence about the first failure if all rollouts of these groups failed, else an empty text."""
    if not groups or any(map(trainable_trajectories, groups)):
        return ""
    error = groups[0].trajectories[0].error
    cause = f"{error['type']}: {error['message']}" if error else "no error"
    return f"every rollout of the batch failed; the first error is {cause}."


def measure_step(
    groups: Sequence[Group], update_stats: UpdateStats, version: int, *, seconds: float, rollouts_per_second: float
) -> TrainingStep:
    """Return the report of a step that started from this version."""
    all_trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    scored = [trajectory for group in groups for trajectory in trainable_trajectories(group)]
    return TrainingStep(
        number=version + 1,
        reward=fmean(trajectory.reward or 0.0 for trajectory in scored),
        update_stats=update_stats,
        staleness=max(staleness(trajectory, version) or 0 for trajectory in scored),
        rollouts_per_second=rollouts_per_second,
        violations=sum(len(check(trajectory)) for trajectory in all_trajectories),
        failed=len(all_trajectories) - len(scored),
        seconds=seconds,
    )
