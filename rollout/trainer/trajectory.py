"""A whole rollout as the trainer sees it: the graph of its messages, its steps, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from renderers_adapter.descriptors import raw_mm_common_fields
from renderers_adapter.tokens import TokenRun
from rollout.records.kinds import HasRolloutIdentity, RecordError, RolloutFinished, RolloutStarted, RolloutStatus, Step
from rollout.records.messages import Message

ROOT = -1


@dataclass(frozen=True, slots=True)
class TrajectoryNode:
    """A message with its tokens. `step` is the turn's record that brought it, as an index into `Trajectory.steps`."""

    index: int
    parent: int
    step: int
    message: Message
    run: TokenRun
    content: tuple[tuple[int, int], ...]

    @property
    def sampled(self) -> bool:
        return self.run.sampled_from < len(self.run.ids)


@dataclass(frozen=True, slots=True)
class Trajectory(HasRolloutIdentity):
    """One finished rollout. A failed one may lack its start, its steps, or both; it never trains."""

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
    """Every image's raw descriptor, by its hash."""
    seconds: float = 0.0

    @property
    def group_size(self) -> int | None:
        return self.started.group_size if self.started else None

    @property
    def trainable(self) -> bool:
        return self.reward is not None and self.status in (RolloutStatus.OK, RolloutStatus.TRUNCATED)

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
        """The nodes that nothing hangs from."""
        parents = {node.parent for node in self.nodes}
        return [node.index for node in self.nodes if node.index not in parents]


def assemble(started: RolloutStarted, steps: Sequence[Step], finished: RolloutFinished) -> Trajectory:
    """Join the records of one attempt. Raises RecordError where they do not fit together."""
    nodes: list[TrajectoryNode] = []
    images: dict[str, Mapping[str, Any]] = {}
    contract = raw_mm_common_fields(**started.layout) if started.layout else {}
    for step_index, step in enumerate(steps):
        if step.first != len(nodes) or not ROOT <= step.parent < step.first:
            raise RecordError(
                f"{step.header.tag}: its nodes begin at {step.first} below {step.parent}, "
                f"after {len(nodes)} nodes that came before."
            )
        parent = step.parent
        for record in step.nodes:
            nodes.append(TrajectoryNode(len(nodes), parent, step_index, record.message, record.run, record.content))
            parent = nodes[-1].index
        if step.images and not contract:
            raise RecordError(f"{step.header.tag}: it brings images, and the start does not say how they are prepared.")
        for mm_hash, descriptor in step.images.items():
            images[mm_hash] = {**contract, **descriptor}
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
    )
