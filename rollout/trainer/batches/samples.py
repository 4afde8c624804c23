"""Makes training samples from the branches of a trajectory: tokens, mask, log-probs and image placeholders.

for sample in samples(trajectory):
    sample = sample.truncated(32768)
    loss(sample.token_ids, sample.logprobs, where=sample.mask)
    auxiliary(sample.token_ids, where=sample.content_mask("tool"))
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, Logprobs, Placeholder, expand
from rollout.records.messages import ROLES
from rollout.trainer.trajectory import Trajectory, TrajectoryNode

TOKEN_ARRAYS = (
    *("token_ids", "mask", "logprobs", "token_types"),
    *("version_index", "turn_index", "token_rewards", "content"),
)
"""The fields of `TrainingSample` that have one entry for each token."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample:
    """One branch of a rollout as training data. All arrays have one entry for each token of `token_ids`.

    Attributes:
        rollout: the id of the rollout.
        group: the id of its group.
        leaf: the index of the last node of the branch, an answer that trains.
        reward: the reward of the rollout.
        token_ids: the expanded ids of the branch.
        mask: True for tokens that train. Each sampled token trains in exactly one sample of its rollout, except in
            `Trajectory.untrained_turns`.
        logprobs: the log-prob of a sampled token, from the weights that sampled it; 0 for other tokens.
        token_types: 1 for image tokens, 0 for text.
        version_index: the index in `versions` of the version that sampled the token; -1 for other tokens.
        versions: the policy versions that sampled the tokens of the branch.
        turn_index: the number of the turn that sampled the token, as in `Step.turn`; -1 for other tokens.
        turns: the numbers of all turns of the rollout in order, including those of other branches. The number of a
            failed turn is missing.
        token_rewards: the reward of a turn, at the last sampled token of its answer; 0 for other tokens. An answer in
            several branches has its reward in each of them, but only one of them trains it (`mask`).
        content: for tokens of a message's content, 1 + the index of the message's role in `ROLES`; 0 for tokens of the
            chat template.
        placeholders: the range of each image's pad tokens, in order.
        images: the raw descriptor of the image at each placeholder; `Materializer` makes the pixels from it.
        image_directory: the directory with the image files, under the path that the worker wrote to.
        banned_ids: the ids of the tokens that were banned in every turn of the branch. With `--logprobs-mode
            processed_logprobs`, vLLM computes log-probs without these tokens. Set their logits to -inf before you
            compare. With `raw_logprobs`, vLLM's log-probs include these tokens.
    """

    rollout: str
    group: str
    leaf: int
    reward: float
    token_ids: ExpandedIds
    mask: npt.NDArray[np.bool_]
    logprobs: Logprobs
    token_types: npt.NDArray[np.uint8]
    version_index: npt.NDArray[np.int32]
    versions: tuple[str, ...]
    turn_index: npt.NDArray[np.int32]
    turns: tuple[int, ...]
    token_rewards: npt.NDArray[np.float32]
    content: npt.NDArray[np.uint8]
    placeholders: tuple[Placeholder, ...]
    images: tuple[Mapping[str, Any], ...]
    image_directory: str
    banned_ids: tuple[int, ...] = ()

    def content_mask(self, *roles: str) -> npt.NDArray[np.bool_]:
        """Return a mask that is True for the content of messages with these roles, including their images."""
        return np.isin(self.content, [1 + ROLES.index(role) for role in roles])

    def truncated(self, limit: int) -> Self:
        """Return the sample with at most its first `limit` tokens.

        If the limit would cut an image, the sample ends before the image. If it cuts an answer, the reward of that turn
        is lost, because it is at the last token.

        Raises:
            ValueError: the limit is negative.
        """
        if limit < 0:
            raise ValueError(f"a sample cannot be cut to {limit} tokens; the limit must be 0 or more")
        cut_images = (
            placeholder.offset
            for placeholder in self.placeholders
            if placeholder.offset < limit < placeholder.offset + placeholder.length
        )
        end = min([limit, *cut_images])
        if end >= len(self.token_ids):
            return self
        kept_images = sum(mark.offset < end for mark in self.placeholders)
        return replace(
            self,
            **{name: getattr(self, name)[:end] for name in TOKEN_ARRAYS},
            placeholders=self.placeholders[:kept_images],
            images=self.images[:kept_images],
        )


def samples(trajectory: Trajectory) -> list[TrainingSample]:
    """Return one sample for each branch with tokens to train. A node in several branches trains only in the first.

    The answers of `Trajectory.untrained_turns` do not train. They are in a sample only as context of later answers.
    """
    if not trajectory.trainable:
        return []
    training_samples: list[TrainingSample] = []
    turns = trajectory.turns
    nodes_to_train = {
        node.index
        for node in trajectory.nodes
        if node.sampled and trajectory.steps[node.step].turn not in trajectory.untrained_turns
    }
    for leaf in _last_nodes(trajectory, nodes_to_train):
        path = trajectory.path(leaf)
        nodes_of_branch = nodes_to_train.intersection(node.index for node in path)
        nodes_to_train -= nodes_of_branch
        training_samples.append(_make_sample(trajectory, turns, path, nodes_of_branch))
    return training_samples


def _last_nodes(trajectory: Trajectory, nodes: Set[int]) -> list[int]:
    """Return those of the nodes below which there are none of the others, in order."""
    last_nodes: list[int] = []
    has_node_below: set[int] = set()
    for node in reversed(trajectory.nodes):  # children come before their parents
        is_above = node.index in has_node_below
        if is_above or node.index in nodes:
            has_node_below.add(node.parent)
            if not is_above:
                last_nodes.append(node.index)
    return last_nodes[::-1]


def _make_sample(
    trajectory: Trajectory, turns: tuple[int, ...], path: list[TrajectoryNode], trained_nodes: set[int]
) -> TrainingSample:
    """Make the sample of the branch `path`, in which the sampled tokens of `trained_nodes` train."""
    expanded = expand([node.run for node in path], pad_id=trajectory.pad_id)
    labels = expanded.labels()
    length = len(expanded.ids)
    mask, content = np.zeros(length, np.bool_), np.zeros(length, np.uint8)
    version_index, turn_index = np.full(length, -1, np.int32), np.full(length, -1, np.int32)
    token_rewards = np.zeros(length, np.float32)
    versions: dict[str, int] = {}
    bans: list[set[int]] = []
    for node, start, end in zip(path, expanded.run_starts[:-1], expanded.run_starts[1:], strict=True):
        role = 1 + ROLES.index(node.message["role"])
        if not node.sampled:
            for first, last in node.content:
                content[start + node.run.expanded_offset(first) : start + node.run.expanded_offset(last)] = role
            continue
        # A sampled message has no images, so it has no expanded tokens. Its sampled tokens are the last of its range.
        sampled_start = end - (len(node.run.ids) - node.run.sampled_from)
        mask[sampled_start:end] = node.index in trained_nodes
        content[sampled_start:end] = role
        step = trajectory.steps[node.step]
        turn_index[sampled_start:end] = step.turn
        token_rewards[end - 1] = trajectory.turn_rewards.get(step.turn, 0.0)
        bans.append(set(step.banned_ids))
        for span in step.versions:
            version_number = versions.setdefault(span.version, len(versions))
            version_index[sampled_start + span.start : sampled_start + span.end] = version_number
    return TrainingSample(
        rollout=trajectory.rollout,
        group=trajectory.group,
        leaf=path[-1].index,
        reward=float(trajectory.reward or 0.0),
        token_ids=expanded.ids,
        mask=mask,
        logprobs=labels.logprobs,
        token_types=labels.token_types,
        version_index=version_index,
        versions=tuple(versions),
        turn_index=turn_index,
        turns=turns,
        token_rewards=token_rewards,
        content=content,
        placeholders=expanded.placeholders,
        images=tuple(trajectory.images[placeholder.hash] for placeholder in expanded.placeholders),
        image_directory=trajectory.started.assets if trajectory.started else "",
        banned_ids=tuple(sorted(set.intersection(*bans))) if bans else (),
    )
