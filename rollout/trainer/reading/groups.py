"""Collects the rollouts of each task in a group, so that the trainer gets them together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rollout.trainer.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one task."""

    id: str
    """The id of the group; its members have the same id in `Trajectory.group`."""
    size: int | None
    """The number of members in the whole group; None if it is unknown because all start records are missing."""
    trajectories: tuple[Trajectory, ...]
    """The members, sorted by the names of their rollouts. Some may have failed."""

    @property
    def whole(self) -> bool:
        """Whether the group has all of its members."""
        return len(self.trajectories) == self.size


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """Says what the reader does with a group that is not whole when its timeout passes. Later members are dropped."""

    timeout: float = 3600.0
    """Seconds to wait for the other members after the first member came."""
    keep_partial: int | None = None
    """Return a partial group to the trainer if it has at least this many members; None: drop all partial groups."""


class GroupMember(Protocol):
    """An item that belongs to a group."""

    @property
    def identity(self) -> str:
        """The name of the member, unique in the run."""

    @property
    def group_identity(self) -> str:
        """The name of the member's group."""

    @property
    def group_size(self) -> int | None:
        """The number of members in the whole group; None if the member does not know it."""


MemberT = TypeVar("MemberT", bound=GroupMember)


@dataclass(slots=True)
class _IncompleteGroup(Generic[MemberT]):
    first_member_at: float
    size: int | None = None
    members: dict[str, MemberT] = field(default_factory=dict)

    def sorted_members(self) -> tuple[MemberT, ...]:
        return tuple(self.members[name] for name in sorted(self.members))


class GroupAssembler(Generic[MemberT]):
    """Collects the members of each group until the group is whole."""

    def __init__(self) -> None:
        self._groups: dict[str, _IncompleteGroup[MemberT]] = {}

    @property
    def waiting(self) -> int:
        """The number of members that wait for the rest of their group."""
        return sum(len(group.members) for group in list(self._groups.values()))

    def add(self, member: MemberT, now: float = 0.0) -> tuple[MemberT, ...] | None:
        """Add a member. If its group is now whole, return all members, sorted by name; otherwise return None."""
        name = member.group_identity
        group = self._groups.setdefault(name, _IncompleteGroup(now))
        group.members[member.identity] = member
        group.size = group.size or member.group_size
        if group.size is None or len(group.members) < group.size:
            return None
        return self._groups.pop(name).sorted_members()

    def give_up(self, before: float) -> Iterable[tuple[MemberT, ...]]:
        """Remove the groups whose first member came before the time `before`; return the members of each group."""
        expired_names = [name for name, group in self._groups.items() if group.first_member_at < before]
        return [self._groups.pop(name).sorted_members() for name in expired_names]
