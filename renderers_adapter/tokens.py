"""Logical and expanded token ids, and the one derivation between them.

*Logical* ids hold one pad token per image: they are what a renderer writes, what is bridged, and what crosses the
queue. *Expanded* ids hold as many pad tokens as the engine sees. The two are distinct types, so that a type checker
refuses to mix them up, and `expand` is the only place where labels, log-prob positions and image offsets move from
one to the other.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NewType

import numpy as np
import numpy.typing as npt

from renderers_adapter.errors import AdapterError

LogicalIds = NewType("LogicalIds", npt.NDArray[np.int32])
ExpandedIds = NewType("ExpandedIds", npt.NDArray[np.int32])
Logprobs = npt.NDArray[np.float32]

NO_LOGPROBS: Logprobs = np.zeros(0, np.float32)


class PlaceholderError(AdapterError):
    """Image placeholders and images do not match; going on would train on misaligned pixels."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """One image in a run of tokens: its pad token's logical offset there, and how many tokens it becomes."""

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenRun:
    """The tokens that one message adds to a conversation.

    `ids[sampled_from:]` were sampled by the policy, with one log-prob each; what stands before is the template's.
    """

    ids: LogicalIds
    sampled_from: int
    logprobs: Logprobs = field(default_factory=lambda: NO_LOGPROBS)
    images: tuple[ImageSlot, ...] = ()

    def expanded_offset(self, offset: int) -> int:
        """Where the token at this logical offset lies once the images before it are expanded."""
        return offset + sum(slot.length - 1 for slot in self.images if slot.offset < offset)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where an image's pad tokens lie in expanded ids."""

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Labels:
    """What training asks of every token of a path: was it sampled, how likely was it, is it part of an image."""

    sampled: npt.NDArray[np.bool_]
    logprobs: Logprobs
    token_types: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Expanded:
    """A path of token runs as the engine sees it.

    Attributes:
        starts: where each run begins, and last where the path ends.
    """

    runs: tuple[TokenRun, ...]
    ids: ExpandedIds
    placeholders: tuple[Placeholder, ...]
    starts: tuple[int, ...]

    def labels(self) -> Labels:
        """Aligned to `ids`. Made when asked for: workers hold thousands of paths, and only trainers want this."""
        sampled = np.zeros(len(self.ids), np.bool_)
        logprobs = np.zeros(len(self.ids), np.float32)
        types = np.zeros(len(self.ids), np.uint8)
        for run, end in zip(self.runs, self.starts[1:], strict=True):
            # Images come before what is sampled, which therefore lies unchanged at the end of its run.
            begin = end - len(run.logprobs)
            sampled[begin:end] = True
            logprobs[begin:end] = run.logprobs
        for mark in self.placeholders:
            types[mark.offset : mark.offset + mark.length] = 1
        return Labels(sampled, logprobs, types)

    def beginning(self, runs: int) -> "Expanded":
        """The first so many runs, in the memory of this path."""
        end = self.starts[runs]
        images = bisect_left(self.placeholders, end, key=lambda mark: mark.offset)
        return Expanded(
            self.runs[:runs], ExpandedIds(self.ids[:end]), self.placeholders[:images], self.starts[: runs + 1]
        )


def logical(ids: Sequence[int] | npt.NDArray[np.int32]) -> LogicalIds:
    """Ids with one pad token per image."""
    return LogicalIds(np.asarray(ids, dtype=np.int32))


def join(*parts: LogicalIds) -> LogicalIds:
    """One sequence of logical ids after another."""
    return LogicalIds(np.concatenate(parts))


def expand(runs: Sequence[TokenRun], *, pad_id: int | None) -> Expanded:
    """Join the runs of a path and expand each image's one pad token to its length.

    Raises:
        PlaceholderError: a slot does not lie on a pad token, or a pad token has no slot.
    """
    sizes = [len(run.ids) for run in runs]
    offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    ids = np.concatenate([run.ids for run in runs]) if runs else np.zeros(0, np.int32)
    slots: list[tuple[int, ImageSlot]] = []
    for run, start, size in zip(runs, offsets[:-1].tolist(), sizes, strict=True):
        if len(run.logprobs) != size - run.sampled_from:
            raise AdapterError(
                f"a run holds {size - run.sampled_from} sampled tokens and {len(run.logprobs)} log-probs"
            )
        slots += [(start + slot.offset, slot) for slot in run.images]
    _require_slots_on_pads(ids, slots, pad_id)
    if not slots:
        return Expanded(tuple(runs), ExpandedIds(ids), (), tuple(offsets.tolist()))
    at = np.fromiter((position for position, _ in slots), np.int64, len(slots))
    lengths = np.fromiter((slot.length for _, slot in slots), np.int64, len(slots))
    repeats = np.ones(len(ids), np.int64)
    repeats[at] = lengths
    shift = np.concatenate(([0], np.cumsum(lengths - 1)))
    placeholders = tuple(
        Placeholder(slot.hash, int(position + shift[k]), slot.length) for k, (position, slot) in enumerate(slots)
    )
    starts = offsets + shift[np.searchsorted(at, offsets, side="left")]
    return Expanded(tuple(runs), ExpandedIds(np.repeat(ids, repeats)), placeholders, tuple(starts.tolist()))


def extend(before: Expanded, added: Expanded) -> Expanded:
    """A path and what was added to it, expanded; the same as expanding all of its runs at once, but cheaper."""
    length = len(before.ids)
    return Expanded(
        (*before.runs, *added.runs),
        ExpandedIds(np.concatenate((before.ids, added.ids))),
        (*before.placeholders, *(moved(mark, length) for mark in added.placeholders)),
        (*before.starts[:-1], *(start + length for start in added.starts)),
    )


def moved(mark: Placeholder, by: int) -> Placeholder:
    """A placeholder in a sequence that now has `by` more tokens before it."""
    return Placeholder(mark.hash, mark.offset + by, mark.length)


def _require_slots_on_pads(ids: npt.NDArray[np.int32], slots: Sequence[tuple[int, ImageSlot]], pad: int | None) -> None:
    pads = [] if pad is None else np.flatnonzero(ids == pad).tolist()
    places = [position for position, _ in slots]
    if pads != places:
        raise PlaceholderError(
            f"the path holds {len(pads)} image pad tokens (first at {pads[:3]}) for {len(places)} images "
            f"(first at {places[:3]}); each image must lie on exactly one pad token"
        )
    for position, slot in slots:
        if slot.length < 1:
            raise PlaceholderError(f"image {slot.hash} at logical offset {position} has the length {slot.length}")
