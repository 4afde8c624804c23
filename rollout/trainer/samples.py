"""Branches to training samples: tokens, mask and log-probs, with each image's place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, Logprobs, Placeholder, expand
from rollout.trainer.trajectory import Trajectory, TrajectoryNode


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One branch of a rollout, as the trainer's forward pass wants it; all arrays are aligned to `token_ids`.

    `images[i]` is the raw descriptor of the image whose pad tokens `placeholders[i]` names: pixels are materialised
    from it at the last moment. `version_index` points into `versions`, and is -1 where nothing was sampled.
    """

    rollout: str
    group: str
    leaf: int
    reward: float
    token_ids: ExpandedIds
    mask: npt.NDArray[np.bool_]
    logprobs: Logprobs
    token_types: npt.NDArray[np.uint8]
    version_index: npt.NDArray[np.int16]
    versions: tuple[str, ...]
    placeholders: tuple[Placeholder, ...]
    images: tuple[Mapping[str, Any], ...]


def samples(trajectory: Trajectory) -> list[TrainingSample]:
    """One sample per leaf that has something to train; a node shared by several leaves trains in the first of them."""
    if not trajectory.trainable:
        return []
    found: list[TrainingSample] = []
    trained: set[int] = set()
    for leaf in trajectory.leaves():
        path = trajectory.path(leaf)
        fresh = {node.index for node in path if node.sampled} - trained
        if fresh:
            trained |= fresh
            found.append(_sample(trajectory, path, fresh))
    return found


def _sample(trajectory: Trajectory, path: list[TrajectoryNode], fresh: set[int]) -> TrainingSample:
    expanded = expand([node.run for node in path], pad_id=trajectory.pad_id)
    mask = np.zeros(len(expanded.ids), np.bool_)
    version_index = np.full(len(expanded.ids), -1, np.int16)
    versions: dict[str, int] = {}
    for node, end in zip(path, expanded.starts[1:], strict=True):
        if not node.sampled:
            continue
        # A sampled message holds no images, so its tokens lie as they were sampled, at the end of its range.
        begin = end - (len(node.run.ids) - node.run.sampled_from)
        mask[begin:end] = node.index in fresh
        for span in trajectory.steps[node.step].versions:
            number = versions.setdefault(span.version, len(versions))
            version_index[begin + span.start : begin + span.end] = number
    return TrainingSample(
        rollout=trajectory.rollout,
        group=trajectory.group,
        leaf=path[-1].index,
        reward=float(trajectory.reward or 0.0),
        token_ids=expanded.ids,
        mask=mask,
        logprobs=expanded.logprobs,
        token_types=expanded.token_types,
        version_index=version_index,
        versions=tuple(versions),
        placeholders=expanded.placeholders,
        images=tuple(trajectory.images[mark.hash] for mark in expanded.placeholders),
    )
