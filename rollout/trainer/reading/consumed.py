"""Remembers what a trainer has consumed, in a state that is small enough for every checkpoint.

The state has three parts. The first is a *watermark* for each lane: every record up to this position is settled. The
second is the names of *consumed* rollouts, as digests. It contains every rollout with a record above a watermark, and
the latest `REMEMBERED_NAMES` rollouts, because stalled attempts may still send records. The third is what the launches
have said about themselves (`rollout.trainer.reading.launches`).

A rollout never trains twice, even after restarts, for this reason. An attempt trains only if its start record arrives.
If that record arrived before the rollout was consumed, it was settled together with the rollout. Then the record is
below the watermark, or the name of the rollout is in the state. If the record arrives later, the name is in the state,
because the latest names are kept. Only one case remains. A worker may stall before its start record, and continue when
more than `REMEMBERED_NAMES` other rollouts have been consumed. The other members of its group do not arrive again, so
the group stays partial, and partial groups are dropped by default.
"""

import base64
import binascii
import heapq
from array import array
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from rollout.records.kinds import RecordError
from rollout.trainer.errors import ReaderStateError
from rollout.trainer.reading.launches import KnownLaunches

REMEMBERED_NAMES = 1 << 18
"""The number of names that are kept after their records were acked; they take 2 MiB of a checkpoint."""

_MAX_IDLE_LANES = 4096
"""The maximum number of lanes without unsettled records; it is needed because every worker process may add lanes."""

_STATE_VERSION = 2


class ConsumedRollouts:
    """Keeps the watermarks and the names of consumed rollouts. A checkpoint must contain the result of `state()`.

    Attributes:
        launches: the launches that write to the queue, as far as their statuses have arrived.
    """

    def __init__(self) -> None:
        self.launches = KnownLaunches()
        self._lanes: dict[str, _LaneWatermark] = {}
        self._consumed_digests: dict[int, None] = {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a saved state. Raises ReaderStateError if it is damaged or was saved in another format."""
        if state.get("version") != _STATE_VERSION:
            raise ReaderStateError(
                f"the reader state has the format version {state.get('version')!r}; expected {_STATE_VERSION}. "
                "Load a state that `state_dict()` of this release of rollout returned."
            )
        try:
            consumed_digests = array("Q", base64.b64decode(state["consumed"], validate=True))
            self._lanes = {str(name): _LaneWatermark(int(watermark)) for name, watermark in state["watermarks"].items()}
            self.launches = KnownLaunches.from_state(state.get("launches", []))
        except (RecordError, KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise ReaderStateError(f"the reader state is damaged: {error!r}. Load an earlier checkpoint.") from error
        self._consumed_digests = dict.fromkeys(consumed_digests)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON-like data."""
        return {
            "version": _STATE_VERSION,
            "watermarks": {name: lane.watermark for name, lane in self._lanes.items()},
            "consumed": base64.b64encode(array("Q", self._consumed_digests).tobytes()).decode("ascii"),
            "launches": self.launches.state(),
        }

    def was_settled(self, lane: str, position: int) -> bool:
        """Whether the loaded state says that this record is settled."""
        return lane in self._lanes and position <= self._lanes[lane].loaded_watermark

    def mark_arrived(self, lane: str, position: int) -> None:
        """Remember that this record has arrived and is not settled yet."""
        lane_watermark = self._lanes.pop(lane, None) or _LaneWatermark(-1)
        self._lanes[lane] = lane_watermark
        lane_watermark.mark_arrived(position)

    def mark_settled(self, lane: str, position: int) -> None:
        """Remember that this record is no longer needed."""
        self._lanes[lane].mark_settled(position)

    def mark_consumed(self, name: str) -> None:
        """Remember that a rollout, or an abandoned group, is consumed, so that its later records are dropped."""
        self._consumed_digests[_name_digest(name)] = None

    def is_consumed(self, name: str) -> bool:
        """Whether the rollout, or the abandoned group, with this name is consumed."""
        return _name_digest(name) in self._consumed_digests

    def prune_acked(self, unacked: int) -> None:
        """Forget the oldest names and idle lanes above the limits. At least `unacked` names stay."""
        surplus_count = len(self._consumed_digests) - max(REMEMBERED_NAMES, unacked)
        for digest in list(islice(self._consumed_digests, max(0, surplus_count))):
            del self._consumed_digests[digest]
        idle_lanes = [name for name, lane in self._lanes.items() if lane.idle]
        for name in idle_lanes[: max(0, len(idle_lanes) - _MAX_IDLE_LANES)]:
            del self._lanes[name]

    def merge(self, other: "ConsumedRollouts") -> None:
        """Add the watermarks and the names of another object."""
        for name, lane in other._lanes.items():
            own_lane = self._lanes.get(name)
            self._lanes[name] = _LaneWatermark(max(lane.watermark, own_lane.watermark) if own_lane else lane.watermark)
        self._consumed_digests |= other._consumed_digests
        self.launches.merge(other.launches)


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the states of several ranks, or of a data loader's processes, into one.

    A trainer that restarts with another number of ranks loads the merged state into every rank.
    """
    merged = ConsumedRollouts()
    for state in states:
        loaded = ConsumedRollouts()
        loaded.load(state)
        merged.merge(loaded)
    return merged.state()


class _LaneWatermark:
    """Keeps the watermark of one lane, and the unsettled positions above it."""

    def __init__(self, loaded_watermark: int) -> None:
        self.loaded_watermark = loaded_watermark
        self._highest_position = loaded_watermark
        self._unsettled: list[int] = []
        self._settled_out_of_order: set[int] = set()

    @property
    def watermark(self) -> int:
        return self._unsettled[0] - 1 if self._unsettled else self._highest_position

    @property
    def idle(self) -> bool:
        return not self._unsettled

    def mark_arrived(self, position: int) -> None:
        heapq.heappush(self._unsettled, position)
        self._highest_position = max(self._highest_position, position)

    def mark_settled(self, position: int) -> None:
        self._settled_out_of_order.add(position)
        while self._unsettled and self._unsettled[0] in self._settled_out_of_order:
            self._settled_out_of_order.discard(heapq.heappop(self._unsettled))


def _name_digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
