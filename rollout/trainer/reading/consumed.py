"""What a trainer has consumed, small enough to be saved with every checkpoint.

Two things are kept. Per lane the *watermark*: every record up to it is settled. And the *consumed* names, as digests:
rollouts that have records above a watermark, and those of long before whose stalled attempts may still be heard from.

Why an attempt at a rollout that was trained never trains again, also after any number of restarts: it trains only as a
whole, so its first record must be kept. If that came before the rollout was consumed, it was settled along with it, and
lies below the watermark or belongs to a consumed name. If it came afterwards, its name is consumed, and remembered for
the next `REMEMBERED` rollouts of this reader. A worker that took an order, fell silent before its very first record and
woke up that many rollouts later would still bring one member of a group whose others never come again; the group stays
partial, and partial groups are dropped unless the trainer asks for them.
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

REMEMBERED = 1 << 18
"""Names that are remembered once their records are acked: 2 MiB in a checkpoint."""

_LANES = 4096
"""Lanes without unsettled records whose watermark is kept; every worker process may have lanes of its own."""

_VERSION = 2


class Progress:
    """Pure bookkeeping: it is told what arrives and what is settled, and says what a checkpoint must know."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._consumed: dict[int, None] = {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises ReaderStateError if it is not a state of ours."""
        if state.get("version") != _VERSION:
            raise ReaderStateError(
                f"the reader state has the version {state.get('version')!r}, not {_VERSION}; "
                "it was saved by another release of rollout, or is none."
            )
        try:
            consumed = array("Q", base64.b64decode(state["consumed"], validate=True))
            self._lanes = {str(name): _Lane(int(watermark)) for name, watermark in state["watermarks"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise ReaderStateError(f"the reader state is damaged: {error!r}") from error
        self._consumed = dict.fromkeys(consumed)

    def state(self) -> dict[str, Any]:
        """All of it as JSON-like data."""
        return {
            "version": _VERSION,
            "watermarks": {name: lane.watermark for name, lane in self._lanes.items()},
            "consumed": base64.b64encode(array("Q", self._consumed).tobytes()).decode("ascii"),
        }

    def was_settled(self, lane: str, position: int) -> bool:
        """Whether the state that was loaded contains this record."""
        return lane in self._lanes and position <= self._lanes[lane].loaded

    def open(self, lane: str, position: int) -> None:
        """A record has come that is not settled yet."""
        known = self._lanes.pop(lane, None) or _Lane(-1)
        self._lanes[lane] = known
        known.open(position)

    def settle(self, lane: str, position: int) -> None:
        self._lanes[lane].settle(position)

    def consume(self, name: str) -> None:
        """From here on everything of that name is dropped."""
        self._consumed[_digest(name)] = None

    def has_consumed(self, name: str) -> bool:
        return _digest(name) in self._consumed

    def forget(self, unacked: int) -> None:
        """Drop what is no longer needed now that all but the last `unacked` consumed names are acked."""
        surplus = len(self._consumed) - max(REMEMBERED, unacked)
        for digest in list(islice(self._consumed, max(0, surplus))):
            del self._consumed[digest]
        idle = [name for name, lane in self._lanes.items() if lane.idle]
        for name in idle[: max(0, len(idle) - _LANES)]:
            del self._lanes[name]

    def absorb(self, other: "Progress") -> None:
        """Contain from here on what the other one contains."""
        for name, lane in other._lanes.items():
            known = self._lanes.get(name)
            self._lanes[name] = _Lane(max(lane.watermark, known.watermark) if known else lane.watermark)
        self._consumed |= other._consumed


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state that contains all of them: of several ranks, or of a data loader's processes.

    A trainer that comes back with another number of ranks gives each of them the merged state of all.
    """
    merged = Progress()
    for state in states:
        part = Progress()
        part.load(state)
        merged.absorb(part)
    return merged.state()


class _Lane:
    """One ordered stream of the queue."""

    def __init__(self, loaded: int) -> None:
        self.loaded = loaded
        self._highest = loaded
        self._open: list[int] = []
        self._settled: set[int] = set()

    @property
    def watermark(self) -> int:
        return self._open[0] - 1 if self._open else self._highest

    @property
    def idle(self) -> bool:
        return not self._open

    def open(self, position: int) -> None:
        heapq.heappush(self._open, position)
        self._highest = max(self._highest, position)

    def settle(self, position: int) -> None:
        self._settled.add(position)
        while self._open and self._open[0] in self._settled:
            self._settled.discard(heapq.heappop(self._open))


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
