"""A whole rollout as the trainer sees it: the graph of its messages, its steps, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from renderers_adapter.descriptors import raw_mm_common_fields
from rollout.records.bounds import MAX_BRANCH_TOKENS
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.kinds import (
    ROOT,
    HasRolloutIdentity,
    MessageTokens,
    NamedReward,
    RecordError,
    RolloutFinished,
    RolloutStarted,
    Step,
)


@dataclass(frozen=True, slots=True)
class TrajectoryNode(MessageTokens):
    """A message of a trajectory with its tokens: `message`, `run`, `content` and `sampled` are those of MessageTokens.

    Attributes:
        index: the index of the node in `Trajectory.nodes`.
        parent: the index of the node before it on its path; -1 (`ROOT`): it begins a path.
        step: the index in `Trajectory.steps` of the turn that added it.
    """

    index: int
    parent: int
    step: int


@dataclass(frozen=True, slots=True)
class Trajectory(HasRolloutIdentity):
    """One finished rollout. A failed one may lack its start, its steps, or both; it never trains.

    Attributes:
        run: the id of the run.
        environment: the name of the environment.
        group: the id of the group.
        rollout: the id of the rollout.
        attempt: the number of the attempt that it was made of.
        status: whether it has a score.
        reward: its reward; None if it has no score.
        metrics: the metrics of its score.
        error: the `type` and the `message` of its error; None if there was none.
        started: the first record of the attempt; None if it did not come.
        steps: the records of its turns, in order.
        nodes: its messages; the parent of each node comes before it.
        images: the raw descriptor of every image, by the image's hash.
        seconds: how long the attempt took; 0 if its last record did not come.
        limit: which limit stopped it.
        rewards: its named rewards, whose weighted sum is its reward; empty if its score had a single reward.
        turn_rewards: the rewards of single answers, by `Step.turn`; they are not part of the reward.
        held_back: whether the reader keeps it from training although it has a score, because
            `ReaderSettings.untrained_limits` names its limit.
    """

    run: str
    environment: str
    group: str
    rollout: str
    attempt: int
    status: RolloutStatus
    reward: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    started: RolloutStarted | None = None
    steps: tuple[Step, ...] = ()
    nodes: tuple[TrajectoryNode, ...] = ()
    images: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    limit: RolloutLimit = RolloutLimit.NONE
    rewards: Mapping[str, NamedReward] = field(default_factory=dict)
    turn_rewards: Mapping[int, float] = field(default_factory=dict)
    held_back: bool = False

    @property
    def group_size(self) -> int | None:
        return self.started.group_size if self.started else None

    @property
    def trainable(self) -> bool:
        return self.reward is not None and self.status.trains and not self.held_back

    @property
    def turns(self) -> tuple[int, ...]:
        """The numbers of its turns, in order. A turn that failed left no step, so its number is missing."""
        return tuple(sorted({step.turn for step in self.steps}))

    @property
    def pad_id(self) -> int | None:
        return self.started.pad_id if self.started else None

    def path(self, leaf: int) -> list[TrajectoryNode]:
        """The nodes from a root to `leaf`."""
        path_nodes: list[TrajectoryNode] = []
        while leaf != ROOT:
            path_nodes.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return path_nodes[::-1]

    def leaves(self) -> list[int]:
        """The indices of the nodes that are no node's parent."""
        parents = {node.parent for node in self.nodes}
        return [node.index for node in self.nodes if node.index not in parents]


def assemble(started: RolloutStarted, steps: Sequence[Step], finished: RolloutFinished) -> Trajectory:
    """Join the records of one attempt. Raises RecordError if they do not fit together."""
    nodes: list[TrajectoryNode] = []
    images: dict[str, Mapping[str, Any]] = {}
    path_tokens: list[int] = []  # of each node: how many tokens its path has, with the images expanded
    path_nodes: list[int] = []
    contract = raw_mm_common_fields(**started.layout) if started.layout else {}
    for step_index, step in enumerate(steps):
        parent = step.parent
        if step.first != len(nodes) or not ROOT <= parent < step.first:
            raise RecordError(
                f"{step.header.tag}: its nodes begin at {step.first} below {parent}, "
                f"after {len(nodes)} nodes that came before."
            )
        if step.images and not contract:
            raise RecordError(f"{step.header.tag}: it brings images, and the start does not say how they are prepared.")
        for mm_hash, descriptor in step.images.items():
            images[mm_hash] = {**contract, **descriptor}
        tokens, depth = (0, 0) if parent == ROOT else (path_tokens[parent], path_nodes[parent])
        for index, node in enumerate(step.nodes, step.first):
            run = node.run
            tokens, depth = tokens + len(run.ids), depth + 1
            for slot in run.images:
                tokens += slot.length - 1
                if slot.hash not in images:
                    raise RecordError(f"{step.header.tag}: no descriptor of image {slot.hash} came until here.")
            path_tokens.append(tokens)
            path_nodes.append(depth)
            nodes.append(TrajectoryNode(node.message, run, node.content, index, parent, step_index))
            parent = index
        prompt_tokens = tokens - len(step.nodes[-1].run.logprobs)
        if prompt_tokens != step.prompt_length:
            raise RecordError(
                f"{step.header.tag}: its path has {prompt_tokens} tokens, the engine's prompt had {step.prompt_length}."
            )
    _require_images_on_pads(nodes, started.pad_id)
    leaves = {step.leaf for step in steps} - {step.parent for step in steps}
    branch_tokens = sum(path_tokens[leaf] + path_nodes[leaf] for leaf in leaves)
    if branch_tokens > MAX_BRANCH_TOKENS:
        raise RecordError(
            f"its {len(leaves)} branches have {branch_tokens} tokens and messages together; at most "
            f"{MAX_BRANCH_TOKENS} are read."
        )
    if unknown_turns := finished.turn_rewards.keys() - {step.turn for step in steps}:
        raise RecordError(f"turn {min(unknown_turns)} has a reward, and there is no step of it.")
    header = finished.header
    return Trajectory(
        run=header.run,
        environment=header.environment,
        group=header.group,
        rollout=header.rollout,
        attempt=header.attempt,
        status=finished.status,
        reward=finished.reward,
        metrics=finished.metrics,
        error=finished.error,
        started=started,
        steps=tuple(steps),
        nodes=tuple(nodes),
        images=images,
        seconds=finished.seconds,
        limit=finished.limit,
        rewards=finished.rewards,
        turn_rewards=finished.turn_rewards,
    )


def _require_images_on_pads(nodes: Sequence[TrajectoryNode], pad_id: int | None) -> None:
    """Check that each image stands on a pad token and each pad token has an image, for all messages at once."""
    positions: list[int] = []
    start = 0
    for node in nodes:
        positions += [start + slot.offset for slot in node.run.images]
        start += len(node.run.ids)
    pads: list[int] = []
    if pad_id is not None and nodes:
        pads = np.flatnonzero(np.concatenate([node.run.ids for node in nodes]) == pad_id).tolist()
    if pads != positions:
        raise RecordError(
            f"its messages have {len(positions)} images, which do not stand on its {len(pads)} image pad tokens."
        )
