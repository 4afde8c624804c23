"""Makes torch tensors from training samples: one row for each sample, or several samples packed into a row.

samples_of_group = [sample for trajectory in group.trajectories for sample in samples(trajectory)]
batch = collate(samples_of_group, advantages=[…], packing=32768)    # for each sample a number, or an array
model(batch.token_ids, position_ids=batch.position_ids, **materializer.inputs(batch.ordered(samples_of_group)))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch

from rollout.trainer.batches.advantages import Estimator, advantages_of, align_advantages, grpo, turn_advantages_of
from rollout.trainer.batches.samples import TOKEN_ARRAYS, TrainingSample, samples
from rollout.trainer.errors import SampleTooLong
from rollout.trainer.reading.groups import Group

T = TypeVar("T")

Credit = Literal["outcome", "turns"]
"""What the advantage of a token is computed from: the reward of its rollout, or the return of its turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The samples of one training step. A tensor has the shape (rows, tokens) unless its text gives another shape.

    Samples and images are numbered row by row, from 0.
    """

    token_ids: torch.Tensor
    """int64: the expanded ids of the samples; 0 in the padding."""
    position_ids: torch.Tensor
    """int64: the position of the token in its sample, from 0; 0 in the padding."""
    sample_index: torch.Tensor
    """int32: the number of the token's sample, to keep packed samples apart in the attention; -1 in the padding."""
    mask: torch.Tensor
    """bool: whether the token trains. Each sampled token trains in exactly one sample of its rollout."""
    logprobs: torch.Tensor
    """float32: the log-prob of a sampled token under the weights that sampled it; 0 elsewhere."""
    advantages: torch.Tensor | None
    """float32: the advantage of the token where `mask` is True; 0 elsewhere. None if `collate` was given none."""
    token_types: torch.Tensor
    """uint8: 1 for image tokens, 0 elsewhere."""
    content: torch.Tensor
    """uint8: 1 + the index in `rollout.records.messages.ROLES` of the role whose content the token is; 0 elsewhere."""
    version_index: torch.Tensor
    """int32: the index in `versions` of the version that sampled the token; -1 elsewhere."""
    turn_index: torch.Tensor
    """int32: the number of the turn that sampled the token, as in `Step.turn`; -1 elsewhere."""
    token_rewards: torch.Tensor
    """float32: the reward of a turn, at the last sampled token of its answer; 0 elsewhere. Sum it under `mask`, because
    an answer may be in several samples."""
    rewards: torch.Tensor
    """float32, (samples,): the reward of each sample's rollout."""
    spans: torch.Tensor
    """int64, (samples, 3): row, first token, number of tokens."""
    placeholders: torch.Tensor
    """int64, (images, 4): sample, row, first token, number of tokens."""
    images: tuple[Mapping[str, Any], ...]
    """The raw descriptor of each image."""
    versions: tuple[str, ...]
    """The policy versions that sampled tokens of the batch."""
    rollouts: tuple[str, ...]
    """The id of each sample's rollout."""
    order: tuple[int, ...]
    """For each sample, its index among the samples that `collate` was given."""
    banned_ids: tuple[tuple[int, ...], ...] = ()
    """For each sample, the tokens that the engine could not sample; see `TrainingSample.banned_ids`."""

    def without_banned(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (rows, tokens, vocabulary) with -inf for the banned tokens of each sample.

        Log-probs of these logits are comparable with those of an engine that leaves out banned tokens, as vLLM does
        with `--logprobs-mode processed_logprobs`.
        """
        if not any(self.banned_ids):
            return logits
        if len(set(self.banned_ids)) == 1:
            return logits.index_fill(-1, torch.tensor(self.banned_ids[0], device=logits.device), float("-inf"))
        without = logits.clone()
        for ids, (row, start, length) in zip(self.banned_ids, self.spans.tolist(), strict=True):
            without[row, start : start + length, list(ids)] = float("-inf")
        return without

    def ordered(self, given: Sequence[T]) -> list[T]:
        """Return a sequence with one item for each sample given to `collate` in the order of this batch."""
        return [given[at] for at in self.order]

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on another device."""
        moved: dict[str, Any] = {
            tensor_field.name: value.to(device, non_blocking=True)
            for tensor_field in fields(self)
            if isinstance(value := getattr(self, tensor_field.name), torch.Tensor)
        }
        return replace(self, **moved)


def collate(
    given: Sequence[TrainingSample],
    *,
    advantages: Sequence[float | npt.NDArray[Any]] | None = None,
    packing: int | None = None,
) -> Batch:
    """Make one batch of all samples.

    Args:
        given: the samples.
        advantages: for each sample one number for all of its tokens, or an array with one for each token, as
            `align_advantages` returns it. Only tokens that train get an advantage.
        packing: how many tokens a row may have; several samples then share a row. None: one row for each sample.

    Raises:
        SampleTooLong: a sample has more tokens than fit into a row.
        ValueError: an array of advantages does not have one entry for each token.
    """
    rows = [[at] for at in range(len(given))] if packing is None else _pack_rows(given, packing)
    order = tuple(at for row in rows for at in row)
    length = max((sum(len(given[at].token_ids) for at in row) for row in rows), default=0)
    version_indices: dict[str, int] = {}
    batch_arrays = _BatchArrays(len(rows), length)
    token_advantages = np.zeros((len(rows), length), np.float32)
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
    ordered = [given[at] for at in order]
    return Batch(
        **{name: torch.from_numpy(values) for name, values in batch_arrays.arrays.items()},
        advantages=None if advantages is None else torch.from_numpy(token_advantages),
        rewards=torch.tensor([sample.reward for sample in ordered], dtype=torch.float32),
        spans=torch.from_numpy(spans),
        placeholders=torch.tensor(placeholders, dtype=torch.int64).reshape(-1, 4),
        images=tuple(image for sample in ordered for image in sample.images),
        versions=tuple(version_indices),
        rollouts=tuple(sample.rollout for sample in ordered),
        order=order,
        banned_ids=tuple(sample.banned_ids for sample in ordered),
    )


def batch_of(
    groups: Sequence[Group],
    *,
    estimator: Estimator = grpo,
    credit: Credit = "outcome",
    max_length: int | None = None,
    packing: int | None = None,
) -> Batch | None:
    """Make one batch of the groups' samples, with advantages within each group; None if no token trains.

    Args:
        groups: the groups, with their failed members.
        estimator: compares the rewards, or the returns, of a group: `grpo`, `rloo`, or a function like them.
        credit: "outcome": the tokens of a rollout have the advantage of its reward (`advantages_of`). "turns": the
            tokens of a turn have the advantage of its return (`turn_advantages_of`).
        max_length: truncate longer samples, and leave out those without a token that trains; None: truncate none.
        packing: how many tokens a row may have; see `collate`.

    Raises:
        SampleTooLong: a sample does not fit into a row.
        ValueError: there is no such credit.
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
    return collate(training_samples, advantages=advantages, packing=packing) if training_samples else None


class _BatchArrays:
    """The arrays of the shape (rows, length). Padding has the token id 0, which every model can embed."""

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
        """Write a sample into a row; return its place in the arrays. New versions are added to `version_indices`."""
        length = len(sample.token_ids)
        token_slice = row, slice(start, start + length)
        batch_indices = [version_indices.setdefault(version, len(version_indices)) for version in sample.versions]
        # The last entry keeps the index -1 of tokens that were not sampled.
        version_index = np.array([*batch_indices, -1], np.int32)[sample.version_index]
        for name in TOKEN_ARRAYS:
            self.arrays[name][token_slice] = getattr(sample, name)
        self.arrays["version_index"][token_slice] = version_index
        self.arrays["position_ids"][token_slice] = np.arange(length)
        self.arrays["sample_index"][token_slice] = sample_number
        return token_slice


def _trained_advantages(sample: TrainingSample, advantage: float | npt.NDArray[Any]) -> Any:
    """Return one advantage for all tokens that train, or an array with one for each of them."""
    if np.ndim(advantage) == 0:
        return advantage
    if np.shape(advantage) != sample.mask.shape:
        raise ValueError(
            f"{sample.rollout}, branch of node {sample.leaf}: the advantages have the shape {np.shape(advantage)} for "
            f"{len(sample.token_ids)} tokens. If you truncate the sample, call align_advantages() afterwards."
        )
    return np.asarray(advantage)[sample.mask]


def _pack_rows(samples_to_pack: Sequence[TrainingSample], row_length: int) -> list[list[int]]:
    """Assign samples to rows: the longest sample first, each to the first row with enough space."""
    rows: list[list[int]] = []
    free_tokens: list[int] = []
    for sample_index in sorted(range(len(samples_to_pack)), key=lambda at: -len(samples_to_pack[at].token_ids)):
        length = len(samples_to_pack[sample_index].token_ids)
        if length > row_length:
            raise SampleTooLong(
                f"{samples_to_pack[sample_index].rollout}, branch of node {samples_to_pack[sample_index].leaf}: "
                f"{length} tokens do not fit into a row of {row_length}. Truncate the sample, or raise `packing`."
            )
        row = next((row for row, free in enumerate(free_tokens) if free >= length), None)
        if row is None:
            rows.append([])
            free_tokens.append(row_length)
            row = len(rows) - 1
        rows[row].append(sample_index)
        free_tokens[row] -= length
    return rows
