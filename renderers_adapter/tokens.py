"""Defines logical and expanded token ids, and expands logical ids.

*Logical* ids have one pad token for each image. A renderer makes them, a bridge adds to them, and the queue carries
them. *Expanded* ids have as many pad tokens for each image as the engine sees. These are two types, so that a type
checker finds mistakes. Only `expand` converts logical ids to expanded ids.
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
    """Image placeholders and images do not match. Training would use wrong pixels."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """One image in a run of tokens.

    Attributes:
        hash: the hash of the image.
        offset: the position of the image's pad token in the run's logical ids.
        length: the number of pad tokens of the image in expanded ids.
    """

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenRun:
    """The tokens that one message adds to a conversation.

    Attributes:
        ids: the token ids, with one pad token for each image.
        sampled_from: the position of the first sampled token: the policy sampled `ids[sampled_from:]`, and the template
            wrote the tokens before.
        logprobs: one log-prob for each sampled token.
        images: the images of the message, in order; they come before the sampled tokens.
    """

    ids: LogicalIds
    sampled_from: int
    logprobs: Logprobs = field(default_factory=lambda: NO_LOGPROBS)
    images: tuple[ImageSlot, ...] = ()

    def expanded_offset(self, offset: int) -> int:
        """Return the expanded position of the token at a logical offset."""
        return offset + sum(slot.length - 1 for slot in self.images if slot.offset < offset)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The range of an image's pad tokens in expanded ids.

    Attributes:
        hash: the hash of the image.
        offset: the position of the image's first pad token.
        length: the number of the image's pad tokens.
    """

    hash: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Arrays for training, with one value for each token of a path.

    Attributes:
        sampled: whether the policy sampled the token.
        logprobs: the log-prob of a sampled token; 0 for other tokens.
        token_types: 1 for an image token, 0 for a text token.
    """

    sampled: npt.NDArray[np.bool_]
    logprobs: Logprobs
    token_types: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPath:
    """The tokens of consecutive messages, from the root on, as the engine sees them.

    Attributes:
        runs: the tokens of each message, in order.
        ids: the expanded ids of all runs.
        placeholders: the range of each image's pad tokens in `ids`, in order.
        run_starts: the position in `ids` where each run begins; the last entry is the length of `ids`.
    """

    runs: tuple[TokenRun, ...]
    ids: ExpandedIds
    placeholders: tuple[Placeholder, ...]
    run_starts: tuple[int, ...]

    def labels(self) -> Labels:
        """Return the labels of `ids`. They are not stored, because workers keep many paths and do not need labels."""
        sampled = np.zeros(len(self.ids), np.bool_)
        logprobs = np.zeros(len(self.ids), np.float32)
        token_types = np.zeros(len(self.ids), np.uint8)
        for run, end in zip(self.runs, self.run_starts[1:], strict=True):
            # Images come before the sampled tokens, so the sampled tokens are the last tokens of the expanded run.
            begin = end - len(run.logprobs)
            sampled[begin:end] = True
            logprobs[begin:end] = run.logprobs
        for placeholder in self.placeholders:
            token_types[placeholder.offset : placeholder.offset + placeholder.length] = 1
        return Labels(sampled, logprobs, token_types)

    def first_runs(self, run_count: int) -> "ExpandedPath":
        """Return the path of the first `run_count` runs. It shares memory with this path."""
        end = self.run_starts[run_count]
        placeholder_count = bisect_left(self.placeholders, end, key=lambda placeholder: placeholder.offset)
        return ExpandedPath(
            self.runs[:run_count],
            ExpandedIds(self.ids[:end]),
            self.placeholders[:placeholder_count],
            self.run_starts[: run_count + 1],
        )


def as_logical_ids(ids: Sequence[int] | npt.NDArray[np.int32]) -> LogicalIds:
    """Return token ids as logical ids. They must have one pad token for each image."""
    return LogicalIds(np.asarray(ids, dtype=np.int32))


def concat_ids(*parts: LogicalIds) -> LogicalIds:
    """Join sequences of logical ids, and return the result."""
    return LogicalIds(np.concatenate(parts))


def expand(runs: Sequence[TokenRun], *, pad_id: int | None) -> ExpandedPath:
    """Join token runs, and repeat each image's pad token as many times as the image has tokens.

    Raises:
        PlaceholderError: an image is not on a pad token, or a pad token has no image.
        AdapterError: a run does not have one log-prob for each sampled token.
    """
    sizes = [len(run.ids) for run in runs]
    run_offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    ids = np.concatenate([run.ids for run in runs]) if runs else np.zeros(0, np.int32)
    slots: list[tuple[int, ImageSlot]] = []
    for run, start, size in zip(runs, run_offsets[:-1].tolist(), sizes, strict=True):
        if len(run.logprobs) != size - run.sampled_from:
            raise AdapterError(f"a run has {size - run.sampled_from} sampled tokens but {len(run.logprobs)} log-probs")
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
    """Join two expanded paths, which is faster than expanding all their runs again."""
    length = len(path.ids)
    return ExpandedPath(
        (*path.runs, *addition.runs),
        ExpandedIds(np.concatenate((path.ids, addition.ids))),
        (*path.placeholders, *(shift_placeholder(placeholder, length) for placeholder in addition.placeholders)),
        (*path.run_starts[:-1], *(start + length for start in addition.run_starts)),
    )


def shift_placeholder(placeholder: Placeholder, token_count: int) -> Placeholder:
    """Return the placeholder with `token_count` more tokens before it."""
    return Placeholder(placeholder.hash, placeholder.offset + token_count, placeholder.length)


def _check_slots_on_pads(
    ids: npt.NDArray[np.int32], slots: Sequence[tuple[int, ImageSlot]], pad_id: int | None
) -> None:
    pad_positions = [] if pad_id is None else np.flatnonzero(ids == pad_id).tolist()
    slot_positions = [position for position, _ in slots]
    if pad_positions != slot_positions:
        raise PlaceholderError(
            f"the path has {len(pad_positions)} image pad tokens (first at {pad_positions[:3]}) for "
            f"{len(slot_positions)} images (first at {slot_positions[:3]}); each image must have exactly one pad token"
        )
    for position, slot in slots:
        if slot.length < 1:
            raise PlaceholderError(
                f"image {slot.hash} at logical offset {position} has the length {slot.length}; expected 1 or more"
            )
