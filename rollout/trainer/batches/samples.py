"""Branches to training samples: tokens, mask and log-probs, with each image's placeholder.

for sample in samples(trajectory):
    sample = sample.truncated(32768)
    loss(sample.token_ids, sample.logprobs, where=sample.mask)
    auxiliary(sample.token_ids, where=sample.content_mask("tool"))
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from renderers_adapter.tokens import ExpandedIds, Logprobs, Placeholder, expand
from rollout.records.messages import ROLES
from rollout.trainer.trajectory import Trajectory, TrajectoryNode


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample:
    """One branch of a rollout, as the trainer's forward pass takes it; all arrays are aligned to `token_ids`.

    Attributes:
        rollout: the id of the rollout.
        group: the id of its group.
        leaf: the node that the branch ends with.
        reward: the reward of the rollout.
        token_ids: the expanded ids of the branch.
        mask: the tokens that train: sampled ones, each in only one sample of its rollout.
        logprobs: the log-prob of a sampled token under the weights that sampled it; 0 elsewhere.
        token_types: 0 text, 1 image.
        version_index: for a sampled token the index of its version in `versions`; -1 elsewhere.
        versions: the policy versions that sampled tokens of the branch.
        turn_index: for a sampled token the number of its turn, as `Step.turn`; -1 elsewhere.
        turns: the numbers of all turns of the rollout, those of other branches too, in order. A turn that failed left
            no answer, so its number is missing.
        token_rewards: at the last sampled token of an answer the reward of its turn; 0 elsewhere. An answer that
            several branches share has its reward in each of them; with `mask` it counts once.
        content: the role whose words a token is, as 1 + the role's index in `ROLES`; 0 for tokens of the template.
        placeholders: where each image's pad tokens are, in order.
        images: the raw descriptor of the image at each placeholder; pixels are materialised from it at the last moment.
        banned_ids: the tokens that the engine was forbidden to sample, in every turn of the branch. Log-probs that an
            engine reports of the distribution that it sampled from, as vLLM does with `--logprobs-mode
            processed_logprobs`, leave them out: compare them with those of a forward pass whose logits of these tokens
            are -inf. With `raw_logprobs` vLLM reports those of the network itself, before the ban.
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
    banned_ids: tuple[int, ...] = ()

    def content_mask(self, *roles: str) -> npt.NDArray[np.bool_]:
        """True at the words of these roles, images included; False at the tokens that the template puts around them."""
        return np.isin(self.content, [1 + ROLES.index(role) for role in roles])

    def truncated(self, limit: int) -> Self:
        """At most the first `limit` tokens, and everything that is aligned to them.

        An image that would be cut is left out whole, with all that follows it. The reward of an answer that is cut is
        left out, too: it stands at the answer's last token.

        Raises:
            ValueError: the limit is below zero.
        """
        if limit < 0:
            raise ValueError(f"a sample cannot be cut to {limit} tokens")
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
            token_ids=ExpandedIds(self.token_ids[:end]),
            mask=self.mask[:end],
            logprobs=self.logprobs[:end],
            token_types=self.token_types[:end],
            version_index=self.version_index[:end],
            turn_index=self.turn_index[:end],
            token_rewards=self.token_rewards[:end],
            content=self.content[:end],
            placeholders=self.placeholders[:kept_images],
            images=self.images[:kept_images],
        )


def samples(trajectory: Trajectory) -> list[TrainingSample]:
    """One sample per leaf that has something to train; a node shared by several leaves trains in the first of them."""
    if not trajectory.trainable:
        return []
    training_samples: list[TrainingSample] = []
    trained: set[int] = set()
    turns = trajectory.turns
    for leaf in trajectory.leaves():
        path = trajectory.path(leaf)
        untrained_nodes = {node.index for node in path if node.sampled} - trained
        if untrained_nodes:
            trained |= untrained_nodes
            training_samples.append(_make_sample(trajectory, turns, path, untrained_nodes))
    return training_samples


def _make_sample(
    trajectory: Trajectory, turns: tuple[int, ...], path: list[TrajectoryNode], trained_nodes: set[int]
) -> TrainingSample:
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
        # A sampled message has no images, so its tokens are unchanged, at the end of its range.
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
        banned_ids=tuple(sorted(set.intersection(*bans))) if bans else (),
    )
