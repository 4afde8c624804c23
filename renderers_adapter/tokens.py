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
    """Image placeholders and images do not match; training would use misaligned pixels."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """One image in a run of tokens.

    Attributes:
        hash: the hash of the image.
        offset: the position of its pad token in the run's logical ids.
        length: how many tokens it takes in expanded ids.
    """

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenRun:
    """The tokens that one message adds to a conversation.

    Attributes:
        ids: the tokens, with one pad token per image.
        sampled_from: `ids[sampled_from:]` were sampled by the policy; the tokens before are the template's.
        logprobs: one log-prob for each sampled token.
        images: the images of the message, in order; they come before the sampled tokens.
    """

    ids: LogicalIds
    sampled_from: int
    logprobs: Logprobs = field(default_factory=lambda: NO_LOGPROBS)
    images: tuple[ImageSlot, ...] = ()

    def expanded_offset(self, offset: int) -> int:
        """The position of the token at this logical offset after the images before it are expanded."""
        return offset + sum(slot.length - 1 for slot in self.images if slot.offset < offset)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where an image's pad tokens are in expanded ids.

    Attributes:
        hash: the hash of the image.
        offset: the position of its first pad token.
        length: how many pad tokens it has.
    """

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Labels:
    """What training needs to know of every token of a path.

    Attributes:
        sampled: whether the policy sampled the token.
        logprobs: the log-prob of a sampled token; 0 elsewhere.
        token_types: 0 text, 1 image.
    """

    sampled: npt.NDArray[np.bool_]
    logprobs: Logprobs
    token_types: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPath:
    """A path of token runs as the engine sees it.

    Attributes:
        runs: the runs of the path, in order.
        ids: the tokens of all runs, expanded.
        placeholders: where each image's pad tokens are, in order.
        run_starts: where each run begins in `ids`, and last where the path ends.
    """

    runs: tuple[TokenRun, ...]
    ids: ExpandedIds
    placeholders: tuple[Placeholder, ...]
    run_starts: tuple[int, ...]

    def labels(self) -> Labels:
        """The labels, aligned to `ids`. They are made on demand: workers hold thousands of paths without them."""
        sampled = np.zeros(len(self.ids), np.bool_)
        logprobs = np.zeros(len(self.ids), np.float32)
        token_types = np.zeros(len(self.ids), np.uint8)
        for run, end in zip(self.runs, self.run_starts[1:], strict=True):
            # Images come before the sampled tokens, which are therefore unchanged at the end of their run.
            begin = end - len(run.logprobs)
            sampled[begin:end] = True
            logprobs[begin:end] = run.logprobs
        for placeholder in self.placeholders:
            token_types[placeholder.offset : placeholder.offset + placeholder.length] = 1
        return Labels(sampled, logprobs, token_types)

    def first_runs(self, run_count: int) -> "ExpandedPath":
        """The first `run_count` runs, as a path that shares the memory of this one."""
        end = self.run_starts[run_count]
        placeholder_count = bisect_left(self.placeholders, end, key=lambda placeholder: placeholder.offset)
        return ExpandedPath(
            self.runs[:run_count],
            ExpandedIds(self.ids[:end]),
            self.placeholders[:placeholder_count],
            self.run_starts[: run_count + 1],
        )


def as_logical_ids(ids: Sequence[int] | npt.NDArray[np.int32]) -> LogicalIds:
    """Ids with one pad token per image."""
    return LogicalIds(np.asarray(ids, dtype=np.int32))


def concat_ids(*parts: LogicalIds) -> LogicalIds:
    """One sequence of logical ids after another."""
    return LogicalIds(np.concatenate(parts))


def expand(runs: Sequence[TokenRun], *, pad_id: int | None) -> ExpandedPath:
    """Join the runs of a path and expand each image's one pad token to its length.

    Raises:
        PlaceholderError: a slot is not on a pad token, or a pad token has no slot.
    """
    sizes = [len(run.ids) for run in runs]
    run_offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    ids = np.concatenate([run.ids for run in runs]) if runs else np.zeros(0, np.int32)
    slots: list[tuple[int, ImageSlot]] = []
    for run, start, size in zip(runs, run_offsets[:-1].tolist(), sizes, strict=True):
        if len(run.logprobs) != size - run.sampled_from:
            raise AdapterError(
                f"a run holds {size - run.sampled_from} sampled tokens and {len(run.logprobs)} log-probs"
            )
        slots += [(start + slot.offset, slot) for slot in run.images]
    _check_slots_on_pads(ids, slots, pad_id)
    if not slots:
        return ExpandedPath(tuple(runs), ExpandedIds(ids), (), tuple(run_offsets.tolist()))
    slot_positions = np.fromiter((position for position, _ in slots), np.int64, len(slots))
    lengths = np.fromiter((slot.length for _, slot in slots), np.int64, len(slots))
    repeats = np.ones(len(ids), np.int64)
    repeats[slot_positions] = lengths
    shifts = np.concatenate(([0], np.cumsum(lengths - 1)))
    placeholders = tuple(
        Placeholder(slot.hash, int(position + shifts[index]), slot.length)
        for index, (position, slot) in enumerate(slots)
    )
    run_starts = run_offsets + shifts[np.searchsorted(slot_positions, run_offsets, side="left")]
    return ExpandedPath(tuple(runs), ExpandedIds(np.repeat(ids, repeats)), placeholders, tuple(run_starts.tolist()))


def extend_path(path: ExpandedPath, addition: ExpandedPath) -> ExpandedPath:
    """An expanded path and an expanded addition, joined; the same as expanding all runs at once, but cheaper."""
    length = len(path.ids)
    return ExpandedPath(
        (*path.runs, *addition.runs),
        ExpandedIds(np.concatenate((path.ids, addition.ids))),
        (*path.placeholders, *(shift_placeholder(placeholder, length) for placeholder in addition.placeholders)),
        (*path.run_starts[:-1], *(start + length for start in addition.run_starts)),
    )


def shift_placeholder(placeholder: Placeholder, token_count: int) -> Placeholder:
    """A placeholder in a sequence that now has `token_count` more tokens before it."""
    return Placeholder(placeholder.hash, placeholder.offset + token_count, placeholder.length)


def _check_slots_on_pads(
    ids: npt.NDArray[np.int32], slots: Sequence[tuple[int, ImageSlot]], pad_id: int | None
) -> None:
    pad_positions = [] if pad_id is None else np.flatnonzero(ids == pad_id).tolist()
    slot_positions = [position for position, _ in slots]
    if pad_positions != slot_positions:
        raise PlaceholderError(
            f"the path holds {len(pad_positions)} image pad tokens (first at {pad_positions[:3]}) for "
            f"{len(slot_positions)} images (first at {slot_positions[:3]}); each image must lie on exactly one pad "
            "token"
        )
    for position, slot in slots:
        if slot.length < 1:
            raise PlaceholderError(f"image {slot.hash} at logical offset {position} has the length {slot.length}")
