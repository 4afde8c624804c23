"""Reads what a run recorded of agent programs, and requires that it leads to the tokens that were sampled."""

from collections.abc import Mapping
from typing import Any

from rollout.records.conversations import Echo, RootKind
from rollout.records.kinds import ROOT, PromptSource, Step
from rollout.trainer import Trajectory, check, samples
from rollout.trainer.reading.archive import open_archive


async def read_trajectories(report: Mapping[str, Any]) -> list[Trajectory]:
    """Return the trajectories that a run recorded."""
    async with open_archive(report["run_dir"]) as reader:
        return [trajectory async for trajectory in reader]


def require_token_exact(trajectory: Trajectory) -> None:
    """Require that all turns of the main conversation but the first are bridged, and every token trains once."""
    assert check(trajectory) == []
    main = main_steps(trajectory)
    assert [step.prompt_source for step in main[1:]] == [PromptSource.BRIDGE] * (len(main) - 1)
    assert main[0].echo is None
    assert {step.echo for step in main[1:]} <= {Echo.EXACT, Echo.NORMALISED}
    trained = sum(int(sample.mask.sum()) for sample in samples(trajectory))
    sampled = sum(
        len(node.run.ids) - node.run.sampled_from
        for node in trajectory.nodes
        if node.sampled and _root_of(trajectory, node.index) in _main_roots(trajectory)
    )
    assert trained == sampled
    assert not trajectory.unreceived_turns


def main_steps(trajectory: Trajectory) -> list[Step]:
    """Return the steps of the conversations that are not auxiliary."""
    return [step for step in trajectory.steps if _root_of(trajectory, step.leaf) in _main_roots(trajectory)]


def _root_of(trajectory: Trajectory, node: int) -> int:
    """Return the index of the node that begins a node's conversation."""
    return trajectory.path(node)[0].index


def _main_roots(trajectory: Trajectory) -> set[int]:
    """Return the indices of the roots that are no auxiliary conversations."""
    roots = {node.index for node in trajectory.nodes if node.parent == ROOT}
    return {root for root in roots if trajectory.root_kinds.get(root, RootKind.MAIN) is RootKind.MAIN}
