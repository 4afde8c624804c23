"""Checks a trajectory against the invariants, from its records alone; any consumer can run it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from renderers_adapter.descriptors import reject_processed
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import LogicalIds, TokenRun, expand
from rollout.evidence import prompt_digest
from rollout.steps import Step
from rollout.trainer.trajectory import Trajectory

_ROUNDING = 1e-3
"""A log-prob of a certain token may come out a little above zero."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant (its number in the design) that does not hold, and where."""

    invariant: int
    rollout: str
    where: str
    detail: str


def check(trajectory: Trajectory) -> list[Violation]:
    """Every violation that can be seen from a trajectory's records; none for a sound one."""
    if trajectory.started is None:
        return []
    found = [
        *_once(trajectory),
        *_raw_only(trajectory),
        *_images_known(trajectory),
        *_evidence(trajectory),
        *_prompts(trajectory),
    ]
    return [Violation(number, trajectory.rollout, where, detail) for number, where, detail in found]


Finding = tuple[int, str, str]


def _prompts(trajectory: Trajectory) -> Iterator[Finding]:
    """1, 2 and 3: the path, joined and expanded, is the prompt that the engine saw, with all of its images."""
    for step in trajectory.steps:
        where = f"turn {step.turn}"
        path = trajectory.path(step.leaf)
        answer = path[-1].run
        opening = TokenRun(LogicalIds(answer.ids[: answer.sampled_from]), answer.sampled_from)
        try:
            prompt = expand([*(node.run for node in path[:-1]), opening], pad_id=trajectory.pad_id)
        except AdapterError as error:
            yield 3, where, str(error)
            continue
        if len(prompt.ids) != step.prompt_length:
            yield 1, where, f"the path has {len(prompt.ids)} tokens, the engine's prompt had {step.prompt_length}"
        elif prompt_digest(prompt.ids, [mark.hash for mark in prompt.placeholders]) != step.prompt_digest:
            yield 1, where, "the path's tokens or images are not those of the engine's prompt"


def _images_known(trajectory: Trajectory) -> Iterator[Finding]:
    """2: every image on a path has its descriptor."""
    for node in trajectory.nodes:
        for slot in node.run.images:
            if slot.hash not in trajectory.images:
                yield 2, f"node {node.index}", f"no descriptor of the image {slot.hash}"


def _raw_only(trajectory: Trajectory) -> Iterator[Finding]:
    """4: descriptors are raw."""
    for mm_hash, item in trajectory.images.items():
        try:
            reject_processed(item)
        except AdapterError as error:
            yield 4, f"image {mm_hash}", str(error)


def _once(trajectory: Trajectory) -> Iterator[Finding]:
    """5: no image's descriptor was sent twice."""
    seen: dict[str, int] = {}
    for step in trajectory.steps:
        for mm_hash in step.images:
            if mm_hash in seen:
                yield 5, f"turn {step.turn}", f"image {mm_hash} was sent in turn {seen[mm_hash]} already"
            seen.setdefault(mm_hash, step.turn)


def _evidence(trajectory: Trajectory) -> Iterator[Finding]:
    """1: every turn's tokens were sampled, each with a log-prob that can be one."""
    for step in trajectory.steps:
        run = trajectory.nodes[step.leaf].run
        where = f"turn {step.turn}"
        if run.sampled_from >= len(run.ids):
            yield 1, where, "nothing was sampled"
        elif not np.isfinite(run.logprobs).all() or (run.logprobs > _ROUNDING).any():
            yield 1, where, "a log-prob is not finite or is above zero"
        yield from _versions(step, len(run.ids) - run.sampled_from)


def _versions(step: Step, sampled: int) -> Iterator[Finding]:
    ends = [0, *(span.end for span in step.versions)]
    starts = [*(span.start for span in step.versions), sampled]
    if step.versions and ends != starts:
        yield 1, f"turn {step.turn}", "the weight versions do not cover the sampled tokens"
