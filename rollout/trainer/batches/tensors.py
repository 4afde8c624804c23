"""Makes torch tensors from training samples. Each sample has its own row, or several samples are packed into one row.

samples_of_group = [sample for trajectory in group.trajectories for sample in samples(trajectory)]
batch = collate(samples_of_group, advantages=[…], packing=32768, materializer=materializer)
logits = model(**batch.model_inputs()).logits
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch

from rollout.trainer.batches.advantages import Estimator, advantages_of, align_advantages, grpo, turn_advantages_of
from rollout.trainer.batches.materialize import Materializer
from rollout.trainer.batches.samples import TOKEN_ARRAYS, TrainingSample, samples
from rollout.trainer.errors import SampleTooLong
from rollout.trainer.reading.groups import Group

T = TypeVar("T")

Credit = Literal["outcome", "turns"]
"""The basis of a token's advantage. "outcome": the reward of its rollout. "turns": the return of its turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The samples of one training step, as tensors of the shape (rows, tokens), unless a field has another shape.

    Samples and images have numbers from 0, row by row. `token_ids` and `position_ids` are the inputs of a text-only
    model; `model_inputs` returns the inputs of every model.
    """

    token_ids: torch.Tensor
    """int64: the expanded ids of the samples; 0 in the padding."""
    position_ids: torch.Tensor
    """int64: the position of the token in its sample; it starts at 0, and is 0 in the padding."""
    rope_positions: torch.Tensor | None
    """int64 of the shape (3, rows, tokens): the position of the token in time, height and width; 0 in the padding. None
    if the model does not need these positions, or if `collate` got no materializer."""
    sample_index: torch.Tensor
    """int32: the number of the token's sample; -1 in the padding. The attention must not mix the packed samples."""
    mask: torch.Tensor
    """bool: whether the token trains. Each sampled token trains in exactly one sample of its rollout, except in
    `Trajectory.untrained_turns`."""
    logprobs: torch.Tensor
    """float32: the log-prob of a sampled token, from the weights that sampled it; 0 elsewhere."""
    advantages: torch.Tensor | None
    """float32: the advantage of the token where `mask` is True; 0 elsewhere. None if `collate` got no advantages."""
    token_types: torch.Tensor
    """uint8: 1 for image tokens, 0 elsewhere."""
    content: torch.Tensor
    """uint8: for content, 1 + the index of the message's role in `rollout.records.messages.ROLES`; 0 elsewhere."""
    version_index: torch.Tensor
    """int32: the index in `versions` of the version that sampled the token; -1 elsewhere."""
    turn_index: torch.Tensor
    """int32: the number of the turn that sampled the token, as in `Step.turn`; -1 elsewhere."""
    token_rewards: torch.Tensor
    """float32: the reward of a turn, at the last sampled token of its answer; 0 elsewhere. To get a sum, add only the
    values where `mask` is True, because an answer may be in several samples."""
    rewards: torch.Tensor
    """float32 of the shape (samples,): the reward of each sample's rollout."""
    spans: torch.Tensor
    """int64 of the shape (samples, 3): the row, the first token and the number of tokens of each sample."""
    placeholders: torch.Tensor
    """int64 of the shape (images, 4): the sample, the row, the first token and the number of tokens of each image."""
    cu_seqlens: torch.Tensor
    """int32 of the shape (sequences + 1,): the boundaries of the sequences if all rows are laid end to end, from 0 to
    rows × tokens. Attention kernels for sequences of different lengths take it. Each sample is a sequence, and so is
    the padding at the end of a row."""
    max_seqlen: int
    """The number of tokens of the longest sequence in `cu_seqlens`."""
    versions: tuple[str, ...]
    """The policy versions that sampled the tokens of the batch."""
    samples: tuple[TrainingSample, ...]
    """The samples, in the order of their numbers."""
    order: tuple[int, ...]
    """For each sample, its index in the argument of `collate`."""
    pixels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The pixels of all images in order, and their grids, by the names of the model's inputs, such as `pixel_values`.
    Empty if there are no images, or if `collate` got no materializer."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of a forward pass of a transformers model: `model(**batch.model_inputs())`.

        Transformers keeps the samples of a row apart by their positions. It does so only without an attention mask and
        without a cache. So there is no `attention_mask`, and `use_cache` is False. With flash attention, transformers
        does so only in a batch of one row.

        Raises:
            ValueError: the batch has images, but no pixels.
        """
        if len(self.placeholders) and not self.pixels:
            raise ValueError(
                f"the batch has {len(self.placeholders)} images, but no pixels. Give "
                "`materializer=Materializer.from_pretrained(checkpoint)` to batch_of(), collate() or open_batches()."
            )
        position_ids = self.position_ids
        if self.rope_positions is not None:
            position_ids = torch.cat([position_ids[None], self.rope_positions])
        return {"input_ids": self.token_ids, "position_ids": position_ids, "use_cache": False, **self.pixels}

    def without_banned(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (rows, tokens, vocabulary) with -inf for the banned tokens of each sample.

        With these logits, log-probs can be compared with those of an engine that excludes banned tokens. vLLM does this
        with `--logprobs-mode processed_logprobs`.
        """
        banned_ids = [sample.banned_ids for sample in self.samples]
        if not any(banned_ids):
            return logits
        if len(set(banned_ids)) == 1:
            return logits.index_fill(-1, torch.tensor(banned_ids[0], device=logits.device), float("-inf"))
        without = logits.clone()
        for ids, (row, start, length) in zip(banned_ids, self.spans.tolist(), strict=True):
            without[row, start : start + length, list(ids)] = float("-inf")
        return without

    def ordered(self, given: Sequence[T]) -> list[T]:
        """Return items in the order of this batch. `given` has one item for each sample passed to `collate`."""
        return [given[at] for at in self.order]

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on another device."""
        moved: dict[str, Any] = {
            tensor_field.name: value.to(device, non_blocking=True)
            for tensor_field in fields(self)
            if isinstance(value := getattr(self, tensor_field.name), torch.Tensor)
        }
        pixels = {name: value.to(device, non_blocking=True) for name, value in self.pixels.items()}
        return replace(self, **moved, pixels=pixels)


def collate(
    given: Sequence[TrainingSample],
    *,
    advantages: Sequence[float | npt.NDArray[Any]] | None = None,
    packing: int | None = None,
    min_rows: int = 0,
    materializer: Materializer | None = None,
) -> Batch:
    """Make one batch of all samples.

    Args:
        given: the samples.
        advantages: for each sample, one number for all tokens, or an array with a number for each token, as
            `align_advantages` returns it. Only tokens that train get an advantage.
        packing: the maximum number of tokens in a row, which several samples may share. None: one row for each sample.
        min_rows: the minimum number of rows. Rows of padding are added to reach it, so that all ranks have equally
            many rows.
        materializer: makes the pixels of the samples' images, and the positions that a model with images needs. Such a
            model needs them also if these samples have no images. None: the batch has neither.

    Raises:
        SampleTooLong: a sample has more tokens than a row may have.
        MaterializeError: an image is missing, or does not fit its sample or the checkpoint.
        ValueError: an array of advantages does not have one entry for each token.
    """
    rows = [[at] for at in range(len(given))] if packing is None else pack_rows(given, packing)
    row_count = max(len(rows), min_rows)
    length = max((sum(len(given[at].token_ids) for at in row) for row in rows), default=min(1, row_count))
    version_indices: dict[str, int] = {}
    batch_arrays = _BatchArrays(row_count, length)
    token_advantages = np.zeros((row_count, length), np.float32)
    spans, placeholders = np.zeros((len(given), 3), np.int64), []
    sample_number = 0
    for row, row_samples in enumerate(rows):
        start = 0
        for at in row_samples:
            sample = given[at]
            token_slice = batch_arrays.write_sample(sample, sample_number, row, start, version_indices)
            if advantages is not None:
                token_advantages[token_slice][sample.mask] = _trained_advantages(sample, advantages[at])
            spans[sample_number] = row, start, len(sample.token_ids)
            placeholders += [
                (sample_number, row, start + placeholder.offset, placeholder.length)
                for placeholder in sample.placeholders
            ]
            start, sample_number = start + len(sample.token_ids), sample_number + 1
    order = tuple(at for row in rows for at in row)
    ordered = tuple(given[at] for at in order)
    cu_seqlens = _sequence_boundaries(spans, row_count, length)
    rope_positions = None
    if materializer is not None and materializer.position_axes > 1:
        rope_positions = np.zeros((materializer.position_axes, row_count, length), np.int64)
        for sample, (row, start, size) in zip(ordered, spans, strict=True):
            rope_positions[:, row, start : start + size] = materializer.positions(sample)
    return Batch(
        **{name: torch.from_numpy(values) for name, values in batch_arrays.arrays.items()},
        advantages=None if advantages is None else torch.from_numpy(token_advantages),
        rewards=torch.tensor([sample.reward for sample in ordered], dtype=torch.float32),
        spans=torch.from_numpy(spans),
        placeholders=torch.tensor(placeholders, dtype=torch.int64).reshape(-1, 4),
        rope_positions=None if rope_positions is None else torch.from_numpy(rope_positions),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=int(np.diff(cu_seqlens).max(initial=0)),
        versions=tuple(version_indices),
        samples=ordered,
        order=order,
        pixels={} if materializer is None else materializer.inputs(ordered),
    )


def batch_of(
    groups: Sequence[Group],
    *,
    estimator: Estimator = grpo,
    credit: Credit = "outcome",
    max_length: int | None = None,
    packing: int | None = None,
    materializer: Materializer | None = None,
) -> Batch | None:
    """Make one batch of the groups' samples, with their advantages within each group; None if no token trains.

    Args:
        groups: the groups, including their failed members.
        estimator: the function that compares the rewards or the returns of a group, such as `grpo` or `rloo`.
        credit: "outcome": all tokens of a rollout have the advantage of its reward (`advantages_of`). "turns": the
            tokens of a turn have the advantage of its return (`turn_advantages_of`).
        max_length: the maximum number of tokens of a sample. Longer samples are truncated, and samples without a
            token that trains are left out. None: no maximum.
        packing: the maximum number of tokens in a row; see `collate`.
        materializer: makes the pixels of the images; see `collate`.

    Raises:
        SampleTooLong: a sample has more tokens than a row may have.
        MaterializeError: an image is missing, or does not fit its sample or the checkpoint.
        ValueError: `credit` has an unknown value.
    """
    chosen, advantages = samples_with_advantages(groups, estimator=estimator, credit=credit, max_length=max_length)
    return collate(chosen, advantages=advantages, packing=packing, materializer=materializer) if chosen else None


def samples_with_advantages(
    groups: Sequence[Group], *, estimator: Estimator, credit: Credit, max_length: int | None
) -> tuple[list[TrainingSample], list[float | npt.NDArray[Any]]]:
    """Return the samples of the groups that have tokens to train, and for each the advantage that `collate` takes.

    The arguments are those of `batch_of`. Raises ValueError if `credit` has an unknown value.
    """
    if credit not in get_args(Credit):
        raise ValueError(f"credit is {credit!r}; expected one of {', '.join(map(repr, get_args(Credit)))}")
    training_samples: list[TrainingSample] = []
    advantages: list[float | npt.NDArray[Any]] = []
    for group in groups:
        by_turn = turn_advantages_of(group, estimator) if credit == "turns" else {}
        by_rollout = advantages_of(group, estimator) if credit == "outcome" else {}
        for trajectory in group.trajectories:
            for full_sample in samples(trajectory):
                sample = full_sample if max_length is None else full_sample.truncated(max_length)
                if sample.mask.any():
                    training_samples.append(sample)
                    name = trajectory.rollout
                    advantages.append(by_rollout[name] if by_rollout else align_advantages(sample, by_turn[name]))
    return training_samples, advantages


class _BatchArrays:
    """Fills the arrays of the shape (rows, length). Padding has the token id 0, because every model can embed it."""

    def __init__(self, rows: int, length: int) -> None:
        shape = (rows, length)
        self.arrays: dict[str, Any] = {
            "token_ids": np.zeros(shape, np.int64),
            "position_ids": np.zeros(shape, np.int64),
            "sample_index": np.full(shape, -1, np.int32),
            "mask": np.zeros(shape, np.bool_),
            "logprobs": np.zeros(shape, np.float32),
            "token_types": np.zeros(shape, np.uint8),
            "content": np.zeros(shape, np.uint8),
            "version_index": np.full(shape, -1, np.int32),
            "turn_index": np.full(shape, -1, np.int32),
            "token_rewards": np.zeros(shape, np.float32),
        }

    def write_sample(
        self, sample: TrainingSample, sample_number: int, row: int, start: int, version_indices: dict[str, int]
    ) -> tuple[int, slice]:
        """Write a sample into a row, and add its new versions to `version_indices`; return its row and its slice."""
        length = len(sample.token_ids)
        token_slice = row, slice(start, start + length)
        batch_indices = [version_indices.setdefault(version, len(version_indices)) for version in sample.versions]
        # A token that was not sampled has the index -1; the last entry maps it to -1.
        version_index = np.array([*batch_indices, -1], np.int32)[sample.version_index]
        for name in TOKEN_ARRAYS:
            self.arrays[name][token_slice] = getattr(sample, name)
        self.arrays["version_index"][token_slice] = version_index
        self.arrays["position_ids"][token_slice] = np.arange(length)
        self.arrays["sample_index"][token_slice] = sample_number
        return token_slice


def _sequence_boundaries(spans: npt.NDArray[np.int64], row_count: int, length: int) -> npt.NDArray[np.int32]:
    """Return the sorted boundaries of the samples and of the padding, with all rows laid end to end."""
    starts = spans[:, 0] * length + spans[:, 1]
    row_starts = np.arange(row_count + 1) * length
    return np.unique(np.concatenate([row_starts, starts, starts + spans[:, 2]])).astype(np.int32)


def _trained_advantages(sample: TrainingSample, advantage: float | npt.NDArray[Any]) -> Any:
    """Return one advantage for all tokens that train, or an array with one advantage for each of these tokens."""
    if np.ndim(advantage) == 0:
        return advantage
    if np.shape(advantage) != sample.mask.shape:
        raise ValueError(
            f"{sample.rollout}, branch of node {sample.leaf}: the advantages have the shape {np.shape(advantage)}, but "
            f"the sample has {len(sample.token_ids)} tokens. Truncate samples before you call align_advantages()."
        )
    return np.asarray(advantage)[sample.mask]


def pack_rows(samples_to_pack: Sequence[TrainingSample], row_length: int) -> list[list[int]]:
    """Return the samples' indices for each row. Assign long samples first, each to the first row with enough space."""
    rows: list[list[int]] = []
    free_tokens: list[int] = []
    for sample_index in sorted(range(len(samples_to_pack)), key=lambda at: -len(samples_to_pack[at].token_ids)):
        length = len(samples_to_pack[sample_index].token_ids)
        if length > row_length:
            raise SampleTooLong(
                f"{samples_to_pack[sample_index].rollout}, branch of node {samples_to_pack[sample_index].leaf}: "
                f"the sample has {length} tokens, but a row has at most {row_length}. Raise `packing`, or give "
                f"`max_length={row_length}` to batch_of() or open_batches(), which then truncates samples. If you call "
                "collate() yourself, truncate the sample first: TrainingSample.truncated()."
            )
        row = next((row for row, free in enumerate(free_tokens) if free >= length), None)
        if row is None:
            rows.append([])
            free_tokens.append(row_length)
            row = len(rows) - 1
        rows[row].append(sample_index)
        free_tokens[row] -= length
    return rows
