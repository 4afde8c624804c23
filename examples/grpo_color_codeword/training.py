"""The trainer's loop: gather a batch, learn from it, publish the version, say how it goes."""

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Self

from examples.grpo_color_codeword.environment import color_ids
from examples.grpo_color_codeword.grpo import Learner, Learnt, played
from examples.grpo_color_codeword.processes import Ended, launched
from renderers_adapter.adapter import load_processor_config
from rollout.log import json_log
from rollout.rundir.manifest import begin
from rollout.trainer import BlockingReader, Consumption, Group, Materializer, PolicyPublisher, check, staleness
from rollout.trainer.weights.from_config import publisher_settings

CONFIG = Path(__file__).with_name("codeword.yaml")
_LOOK = 0.5
_PATIENCE = 120.0
"""Seconds without a whole batch after which something must be wrong."""


@dataclass(frozen=True)
class Step:
    """One step of training, as it is drawn.

    Attributes:
        reward: the mean of the batch that was learnt from.
        staleness: the most versions that any of its rollouts lay behind.
        rollouts_per_second: over the whole of the step, learning and publishing included.
        violations: what `rollout.trainer.check` found in it.
        versions: those that its tokens were sampled by.
        failed: rollouts that ended without a score.
    """

    number: int
    reward: float
    learnt: Learnt
    staleness: int
    rollouts_per_second: float
    violations: int
    versions: frozenset[str]
    failed: int
    seconds: float


class Training:
    """A run with a policy that learns. Use it as a context manager, and ask for one step after another."""

    def __init__(
        self, checkpoint: Path, runs: Path, engine: str, *, seed: int, workers: int, overrides: Sequence[str] = ()
    ) -> None:
        told = {
            "engine.urls": f'["{engine}"]',
            "model.path": checkpoint,
            "run.directory": runs,
            "tasks.seed": seed,
        }
        run, [member] = begin([CONFIG], [*(f"{key}={value}" for key, value in told.items()), *overrides])
        self.run, self._config, self._workers = run, member.config, workers
        materializer = Materializer("qwen_vl", load_processor_config(checkpoint), images=run.images, backend="pil")
        self.learner = Learner(checkpoint, materializer, color_ids())
        self._publisher = PolicyPublisher(publisher_settings([self._config], run.path))
        self._reader = BlockingReader(run.url(self._config.queue.url, self._config.run.name))
        self._consumption = Consumption()
        self._version = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(json_log(self.run.path / "trainer.jsonl", run=self.run.run))
            stack.enter_context(self._publisher)
            stack.enter_context(self._reader)
            self._publish()
            self._launch = stack.enter_context(launched(self.run.path, self._workers))
            self._stack = stack.pop_all()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> Step:
        """Gather a batch, learn from it, and publish what that made of the policy."""
        version, began = self._version, time.monotonic()
        self._reader.version = version
        groups = gather(self._reader, self._launch, rollouts=self._config.policy.batch)
        learnt = self.learner.step([group for group in groups if played(group)], str(version))
        trained = sum(len(played(group)) for group in groups)
        every = sum(len(group.trajectories) for group in groups)
        self._version += 1
        self._consumption = Consumption(
            self._consumption.consumed + trained, self._consumption.discarded + every - trained
        )
        self._publish()
        # A run of minutes is begun anew rather than continued; a longer one saves this state with its weights.
        self._reader.commit(self._reader.state_dict()["number"])
        now = time.monotonic()
        return measured(groups, learnt, version, seconds=now - self._began, rollouts_per_second=every / (now - began))

    def _publish(self) -> None:
        consumption = {self._config.run.name: self._consumption}
        self._publisher.publish(self._version, self.learner.model.save_pretrained, consumption)


def gather(reader: BlockingReader, launch: subprocess.Popen[bytes], *, rollouts: int) -> list[Group]:
    """The groups of one batch."""
    groups: list[Group] = []
    patience = time.monotonic() + _PATIENCE
    while sum(len(group.trajectories) for group in groups) < rollouts:
        if (group := reader.receive_group(timeout=_LOOK)) is not None:
            groups.append(group)
        elif launch.poll() is not None:
            raise Ended(f"the launch ended with {launch.returncode}; see launch.out in the run's directory.")
        elif time.monotonic() > patience:
            raise Ended(f"no whole batch came within {_PATIENCE:g} s; see log.jsonl in the run's directory.")
    if not any(map(played, groups)):
        raise Ended(f"every rollout of a batch failed, the first one with {groups[0].trajectories[0].error}.")
    return groups


def measured(
    groups: Sequence[Group], learnt: Learnt, version: int, *, seconds: float, rollouts_per_second: float
) -> Step:
    """What there is to be seen of a step that was taken from this version."""
    every = [trajectory for group in groups for trajectory in group.trajectories]
    scored = [trajectory for group in groups for trajectory in played(group)]
    return Step(
        number=version + 1,
        reward=fmean(trajectory.reward or 0.0 for trajectory in scored),
        learnt=learnt,
        staleness=max(staleness(trajectory, version) or 0 for trajectory in scored),
        rollouts_per_second=rollouts_per_second,
        violations=sum(len(check(trajectory)) for trajectory in every),
        versions=frozenset(span.version for t in scored for step in t.steps for span in step.versions),
        failed=len(every) - len(scored),
        seconds=seconds,
    )
