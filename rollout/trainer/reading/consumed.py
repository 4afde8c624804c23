"""What a trainer has consumed, small enough to be saved with every checkpoint.

Two things are kept. Per lane the *watermark*: every record up to it is settled. And the *consumed* names, as digests:
rollouts that have records above a watermark, and earlier rollouts whose stalled attempts may still send records.

A rollout that was trained never trains again, after any number of restarts. The reason: an attempt trains only as a
whole, so its first record must be kept. If that record came before the rollout was consumed, it was settled together
with the rollout, and is below the watermark or belongs to a consumed name. If it came later, the name is consumed, and
remembered for the next `REMEMBERED_NAMES` rollouts of this reader. One case remains: a worker stalls before its very
first record and wakes up that many rollouts later. Its rollout is then one member of a group whose others never come
again; the group stays partial, and partial groups are dropped unless the trainer asks for them.
"""

import base64
import binascii
import heapq
from array import array
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from rollout.trainer.errors import ReaderStateError

REMEMBERED_NAMES = 1 << 18
"""Names that are remembered once their records are acked: 2 MiB in a checkpoint."""

_MAX_IDLE_LANES = 4096
"""Lanes without unsettled records whose watermark is kept; every worker process may have lanes of its own."""

_STATE_VERSION = 2


class ConsumedRollouts:
    """Pure bookkeeping: the reader reports what arrives and is settled; `state` is what a checkpoint must contain."""

    def __init__(self) -> None:
        self._lanes: dict[str, _LaneWatermark] = {}
        self._consumed_digests: dict[int, None] = {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a state. Raises ReaderStateError if it is not one of this version, or damaged."""
        if state.get("version") != _STATE_VERSION:
            raise ReaderStateError(
                f"the reader state has the version {state.get('version')!r}, not {_STATE_VERSION}; "
                "it was saved by another release of rollout, or is none."
            )
        try:
            consumed_digests = array("Q", base64.b64decode(state["consumed"], validate=True))
            self._lanes = {str(name): _LaneWatermark(int(watermark)) for name, watermark in state["watermarks"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise ReaderStateError(f"the reader state is damaged: {error!r}") from error
        self._consumed_digests = dict.fromkeys(consumed_digests)

    def state(self) -> dict[str, Any]:
        """The state as JSON-like data."""
        return {
            "version": _STATE_VERSION,
            "watermarks": {name: lane.watermark for name, lane in self._lanes.items()},
            "consumed": base64.b64encode(array("Q", self._consumed_digests).tobytes()).decode("ascii"),
        }

    def was_settled(self, lane: str, position: int) -> bool:
        """Whether the state that was loaded contains this record."""
        return lane in self._lanes and position <= self._lanes[lane].loaded_watermark

    def mark_arrived(self, lane: str, position: int) -> None:
        """Note that a record has arrived and is not settled yet."""
        lane_watermark = self._lanes.pop(lane, None) or _LaneWatermark(-1)
        self._lanes[lane] = lane_watermark
        lane_watermark.mark_arrived(position)

    def mark_settled(self, lane: str, position: int) -> None:
        self._lanes[lane].mark_settled(position)

    def mark_consumed(self, name: str) -> None:
        """From now on every record of this rollout or group is dropped."""
        self._consumed_digests[_name_digest(name)] = None

    def is_consumed(self, name: str) -> bool:
        return _name_digest(name) in self._consumed_digests

    def prune_acked(self, unacked: int) -> None:
        """Drop the oldest names and idle lanes that are over their limits; `unacked` records may still need names."""
        surplus_count = len(self._consumed_digests) - max(REMEMBERED_NAMES, unacked)
        for digest in list(islice(self._consumed_digests, max(0, surplus_count))):
            del self._consumed_digests[digest]
        idle_lanes = [name for name, lane in self._lanes.items() if lane.idle]
        for name in idle_lanes[: max(0, len(idle_lanes) - _MAX_IDLE_LANES)]:
            del self._lanes[name]

    def merge(self, other: "ConsumedRollouts") -> None:
        """Add everything that the other one contains."""
        for name, lane in other._lanes.items():
            own_lane = self._lanes.get(name)
            self._lanes[name] = _LaneWatermark(max(lane.watermark, own_lane.watermark) if own_lane else lane.watermark)
        self._consumed_digests |= other._consumed_digests


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state that contains the states of several ranks, or of a data loader's processes.

    A trainer that restarts with another number of ranks loads the merged state into each of them.
    """
    merged = ConsumedRollouts()
    for state in states:
        loaded = ConsumedRollouts()
        loaded.load(state)
        merged.merge(loaded)
    return merged.state()


class _LaneWatermark:
    """The watermark of one lane, and the positions above it."""

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
