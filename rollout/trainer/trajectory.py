"""Defines the trajectory: a whole rollout with its steps, the tree of its messages, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from renderers_adapter.descriptors import raw_mm_common_fields
from rollout.records.bounds import MAX_BRANCH_TOKENS
from rollout.records.conversations import RootKind
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
    """A message of a trajectory with its tokens.

    Attributes:
        index: the index of the node in `Trajectory.nodes`.
        parent: the index of the node of the previous message; -1 (`ROOT`) if this is the first message.
        step: the index in `Trajectory.steps` of the turn that added the node.
    """

    index: int
    parent: int
    step: int


@dataclass(frozen=True, slots=True)
class Trajectory(HasRolloutIdentity):
    """One finished rollout. If it failed, its start record or some steps may be missing; it then never trains.

    Attributes:
        run: the id of the run.
        environment: the name of the environment.
        group: the id of the group.
        rollout: the id of the rollout, unique in its environment.
        attempt: the number of the attempt that produced the trajectory.
        status: whether the rollout has a score.
        reward: the reward; None if the rollout has no score.
        metrics: the metrics of the score, by name.
        error: the `type` and the `message` of the error that ended the rollout; None if there was none.
        started: the first record of the attempt; None if it did not arrive.
        steps: the records of the turns, in order.
        nodes: the messages; each node comes after its parent.
        images: the raw descriptor of every image, by the image's hash.
        seconds: the duration of the attempt in seconds; 0 if its finished record did not arrive.
        limit: which limit stopped the rollout; `NONE` if none did.
        rewards: the named rewards; `reward` is their weighted sum. Empty if the environment gave a single reward.
        turn_rewards: the rewards of single turns, by `Step.turn`; they are not part of `reward`.
        unreceived_turns: the turns whose answers the program did not receive, by `Step.turn`.
        root_kinds: the kinds of the roots, by the index of the node. A root without an entry is a main root.
        untrained_turns: the turns whose answers do not train, by `Step.turn`: those that were not received, and those
            that the reader's settings leave out.
        held_back: whether the trajectory has a score but does not train, because `ReaderSettings.untrained_limits`
            contains its limit.
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
    unreceived_turns: frozenset[int] = frozenset()
    root_kinds: Mapping[int, RootKind] = field(default_factory=dict)
    untrained_turns: frozenset[int] = frozenset()
    held_back: bool = False

    @property
    def group_size(self) -> int | None:
        """The number of rollouts in its group; None if the start record is missing."""
        return self.started.group_size if self.started else None

    @property
    def trainable(self) -> bool:
        """Whether the trajectory has a score and is not held back."""
        return self.reward is not None and self.status.trains and not self.held_back

    @property
    def turns(self) -> tuple[int, ...]:
        """The numbers of its turns, in order. The number of a failed turn is missing."""
        return tuple(sorted({step.turn for step in self.steps}))

    @property
    def pad_id(self) -> int | None:
        """The id of the image pad token; None if the model is text-only or the start record is missing."""
        return self.started.pad_id if self.started else None

    def path(self, leaf: int) -> list[TrajectoryNode]:
        """Return the nodes from the root to the node with the index `leaf`."""
        path_nodes: list[TrajectoryNode] = []
        while leaf != ROOT:
            path_nodes.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return path_nodes[::-1]

    def leaves(self) -> list[int]:
        """Return the indices of the nodes that have no children, in order."""
        parents = {node.parent for node in self.nodes}
        return [node.index for node in self.nodes if node.index not in parents]


def assemble(
    started: RolloutStarted,
    steps: Sequence[Step],
    finished: RolloutFinished,
    *,
    train_auxiliary_roots: bool = False,
    train_constrained_turns: bool = True,
) -> Trajectory:
    """Make a trajectory from the records of one attempt. `ReaderSettings` explains the keyword arguments.

    Raises:
        RecordError: the records contradict each other.
    """
    nodes: list[TrajectoryNode] = []
    images: dict[str, Mapping[str, Any]] = {}
    path_tokens: list[int] = []  # for each node, the number of expanded tokens from the root to it
    path_nodes: list[int] = []  # for each node, the number of nodes from the root to it
    contract = raw_mm_common_fields(**started.layout) if started.layout else {}
    for step_index, step in enumerate(steps):
        parent = step.parent
        if step.first != len(nodes) or not ROOT <= parent < step.first:
            raise RecordError(
                f"{step.header.tag}: its nodes begin at index {step.first} with the parent {parent}; they must begin "
                f"at index {len(nodes)}, and the parent must be an earlier node."
            )
        if step.images and not contract:
            raise RecordError(f"{step.header.tag}: the step has images, but the start record has no image layout.")
        for mm_hash, descriptor in step.images.items():
            images[mm_hash] = {**contract, **descriptor}
        tokens, depth = (0, 0) if parent == ROOT else (path_tokens[parent], path_nodes[parent])
        for index, node in enumerate(step.nodes, step.first):
            run = node.run
            tokens, depth = tokens + len(run.ids), depth + 1
            for slot in run.images:
                tokens += slot.length - 1
                if slot.hash not in images:
                    raise RecordError(
                        f"{step.header.tag}: neither this step nor an earlier one describes image {slot.hash}."
                    )
            path_tokens.append(tokens)
            path_nodes.append(depth)
            nodes.append(TrajectoryNode(node.message, run, node.content, index, parent, step_index))
            parent = index
        prompt_tokens = tokens - len(step.nodes[-1].run.logprobs)
        if prompt_tokens != step.prompt_length:
            raise RecordError(
                f"{step.header.tag}: its recorded prompt has {prompt_tokens} tokens, but the engine's prompt had "
                f"{step.prompt_length}."
            )
    _require_images_on_pads(nodes, started.pad_id)
    leaves = {step.leaf for step in steps} - {step.parent for step in steps}
    branch_tokens = sum(path_tokens[leaf] + path_nodes[leaf] for leaf in leaves)
    if branch_tokens > MAX_BRANCH_TOKENS:
        raise RecordError(
            f"its {len(leaves)} branches have {branch_tokens} tokens and messages in total; the maximum is "
            f"{MAX_BRANCH_TOKENS}."
        )
    if unknown_turns := finished.turn_rewards.keys() - {step.turn for step in steps}:
        raise RecordError(f"turn {min(unknown_turns)} has a reward but no step.")
    if unknown_turns := set(finished.unreceived_turns) - {step.turn for step in steps}:
        raise RecordError(f"turn {min(unknown_turns)} was not received, but it has no step.")
    if no_roots := finished.root_kinds.keys() - {step.first for step in steps if step.parent == ROOT}:
        raise RecordError(f"node {min(no_roots)} has a kind of root, but it is no root.")
    untrained_turns = set(finished.unreceived_turns)
    if not train_auxiliary_roots:
        untrained_turns |= _auxiliary_turns(steps, finished.root_kinds)
    if not train_constrained_turns:
        untrained_turns |= {step.turn for step in steps if step.constrained}
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
        unreceived_turns=frozenset(finished.unreceived_turns),
        root_kinds=finished.root_kinds,
        untrained_turns=frozenset(untrained_turns),
    )


def _auxiliary_turns(steps: Sequence[Step], root_kinds: Mapping[int, RootKind]) -> set[int]:
    """Return the turns in the conversations that begin at an auxiliary root."""
    auxiliary_nodes = {root for root, kind in root_kinds.items() if kind is RootKind.AUXILIARY}
    auxiliary_turns: set[int] = set()
    for step in steps if auxiliary_nodes else ():
        if step.first in auxiliary_nodes or step.parent in auxiliary_nodes:
            auxiliary_nodes.update(range(step.first, step.leaf + 1))
            auxiliary_turns.add(step.turn)
    return auxiliary_turns


def _require_images_on_pads(nodes: Sequence[TrajectoryNode], pad_id: int | None) -> None:
    """Raise RecordError unless each image is on a pad token and each pad token has an image."""
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
            f"the {len(positions)} images of its messages are not at the positions of its {len(pads)} image pad tokens."
        )
