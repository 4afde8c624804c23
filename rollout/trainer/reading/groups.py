"""Groups: all rollouts of one task, complete before any of them trains."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rollout.trainer.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one task."""

    id: str
    """The id of the group: `Trajectory.group` of its members."""
    size: int | None
    """How many members a whole group has; None if no member has its start record, which says it."""
    trajectories: tuple[Trajectory, ...]
    """The members, also failed ones, in the order of their rollouts' names."""

    @property
    def whole(self) -> bool:
        """Whether the group has all of its members."""
        return len(self.trajectories) == self.size


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What the reader does with a group that stays partial. It drops members that come after the timeout."""

    timeout: float = 3600.0
    """Seconds to wait for the other members after the first one came."""
    keep_partial: int | None = None
    """Hand out a partial group if it has at least this many members; None: drop all partial groups."""


class GroupMember(Protocol):
    """An item that belongs to a group."""

    @property
    def identity(self) -> str:
        """The name of the member, unique in the run."""

    @property
    def group_identity(self) -> str:
        """The name of its group."""

    @property
    def group_size(self) -> int | None:
        """How many members its group has; None if it does not know."""


MemberT = TypeVar("MemberT", bound=GroupMember)


@dataclass(slots=True)
class _IncompleteGroup(Generic[MemberT]):
    first_member_at: float
    size: int | None = None
    members: dict[str, MemberT] = field(default_factory=dict)

    def sorted_members(self) -> tuple[MemberT, ...]:
        return tuple(self.members[name] for name in sorted(self.members))


class GroupAssembler(Generic[MemberT]):
    """Collects members until their group is whole."""

    def __init__(self) -> None:
        self._groups: dict[str, _IncompleteGroup[MemberT]] = {}

    @property
    def waiting(self) -> int:
        """How many members wait for the rest of their group."""
        return sum(len(group.members) for group in list(self._groups.values()))

    def add(self, member: MemberT, now: float = 0.0) -> tuple[MemberT, ...] | None:
        """Add a member; if its group is now whole, return all members in the order of their names."""
        name = member.group_identity
        group = self._groups.setdefault(name, _IncompleteGroup(now))
        group.members[member.identity] = member
        group.size = group.size or member.group_size
        if group.size is None or len(group.members) < group.size:
            return None
        return self._groups.pop(name).sorted_members()

    def give_up(self, before: float) -> Iterable[tuple[MemberT, ...]]:
        """Remove and return the groups whose first member came before the time `before`."""
        expired_names = [name for name, group in self._groups.items() if group.first_member_at < before]
        return [self._groups.pop(name).sorted_members() for name in expired_names]
