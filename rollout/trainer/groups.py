"""Groups: all samples of one task, complete before any of them trains."""

from dataclasses import dataclass

from rollout.trainer.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one task, in the order of their rollouts' names; failed ones are among them."""

    id: str
    trajectories: tuple[Trajectory, ...]


class GroupAssembler:
    """Collects trajectories until a group is whole. A rollout's own start says how large its group is."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, Trajectory]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Trajectories that wait for the rest of their group."""
        return sum(len(members) for members in self._members.values())

    def add(self, trajectory: Trajectory) -> Group | None:
        """Take in one trajectory; the group, if that made it whole."""
        group = trajectory.group
        members = self._members.setdefault(group, {})
        members[trajectory.rollout] = trajectory
        if trajectory.started is not None:
            self._sizes[group] = trajectory.started.group_size
        if len(members) < self._sizes.get(group, len(members) + 1):
            return None
        del self._members[group], self._sizes[group]
        return Group(group, tuple(members[name] for name in sorted(members)))
