"""Groups: all rollouts of one task, complete before any of them trains."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rollout.trainer.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one task."""

    id: str
    """The id of the group, which is `Trajectory.group` of its members."""
    size: int | None
    """How many members the group should have; None: no member says it, because each lacks its start."""
    trajectories: tuple[Trajectory, ...]
    """The members in the order of their rollouts' names, failed ones included."""

    @property
    def whole(self) -> bool:
        return len(self.trajectories) == self.size


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What happens to a group whose last members do not come. Members that come later are dropped."""

    timeout: float = 3600.0
    """Seconds that the reader waits for the other members, from the first one on."""
    keep_partial: int | None = None
    """How many members a partial group must have to be handed out; None: partial groups are dropped."""


class GroupMember(Protocol):
    """An item that belongs to a group."""

    @property
    def identity(self) -> str: ...
    @property
    def group_identity(self) -> str: ...
    @property
    def group_size(self) -> int | None: ...


MemberT = TypeVar("MemberT", bound=GroupMember)


@dataclass(slots=True)
class _IncompleteGroup(Generic[MemberT]):
    first_member_at: float
    size: int | None = None
    members: dict[str, MemberT] = field(default_factory=dict)

    def sorted_members(self) -> tuple[MemberT, ...]:
        return tuple(self.members[name] for name in sorted(self.members))


class GroupAssembler(Generic[MemberT]):
    """Collects members until a group is whole. The start record of a rollout says how large its group is."""

    def __init__(self) -> None:
        self._groups: dict[str, _IncompleteGroup[MemberT]] = {}

    @property
    def waiting(self) -> int:
        """How many members wait for the rest of their group."""
        return sum(len(group.members) for group in list(self._groups.values()))

    def add(self, member: MemberT, now: float = 0.0) -> tuple[MemberT, ...] | None:
        """Add a member; returns the members in the order of their names if the group is now whole."""
        name = member.group_identity
        group = self._groups.setdefault(name, _IncompleteGroup(now))
        group.members[member.identity] = member
        group.size = group.size or member.group_size
        if group.size is None or len(group.members) < group.size:
            return None
        return self._groups.pop(name).sorted_members()

    def give_up(self, before: float) -> Iterable[tuple[MemberT, ...]]:
        """Remove and return the groups whose first member came before this time."""
        expired_names = [name for name, group in self._groups.items() if group.first_member_at < before]
        return [self._groups.pop(name).sorted_members() for name in expired_names]
