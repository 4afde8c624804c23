"""Makes the dictionaries that TRL's loss reads from the batch of a step.

Each sample is a row. Its prompt is everything before the first token that trains, and its completion is the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rollout.errors import ConfigurationError
from rollout.trainer.batches.tensors import Batch

_GRID = "image_grid_thw"


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one rank in one step, divided into micro-batches of equally many rows."""

    micro_batches: tuple[dict[str, Any], ...]
    """For each micro-batch, the dictionary that TRL's loss reads. Its tensors are on the CPU."""
    rows: int
    """The number of rows of each micro-batch, with rows of padding."""


def step_rows(batch: Batch, *, trained_tokens: int, parts: int, max_rows: int, pad_id: int) -> StepRows:
    """Divide the rows of a step. The rows are in the order of the batch, and rows of padding are at the end.

    Args:
        batch: this rank's batch, with a row for each sample.
        trained_tokens: the number of tokens that train on all ranks.
        parts: the number of micro-batches is a multiple of this number.
        max_rows: the maximum number of rows of a micro-batch.
        pad_id: the id of the padding.

    Raises:
        ConfigurationError: the batch has images, but no pixels that TRL can pass to the model.
    """
    _check_pixels(batch)
    row_count = len(batch.token_ids)
    count = parts * math.ceil(row_count / (parts * max_rows))
    rows_each = math.ceil(row_count / count)
    rows = [_row_of(batch, number) for number in range(len(batch.samples))]
    rows += [_padding_row(pad_id)] * (rows_each * count - len(rows))
    images = _ImageParts(batch)
    return StepRows(
        tuple(
            _inputs(rows[at : at + rows_each], images, trained_tokens, pad_id)
            for at in range(0, rows_each * count, rows_each)
        ),
        rows_each,
    )


def trained_values(values: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the values of a micro-batch's completions at the tokens that train, row by row."""
    return values[(inputs["completion_mask"] * inputs["tool_mask"]).bool()]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row; each tensor has one entry for each token."""

    token_ids: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    advantages: torch.Tensor
    token_types: torch.Tensor
    split: int
    """The number of tokens of the prompt."""
    first_image: int
    images: int


def _row_of(batch: Batch, number: int) -> _Row:
    row, start, length = batch.spans[number].tolist()
    tokens = row, slice(start, start + length)
    mask = batch.mask[tokens]
    assert batch.advantages is not None
    return _Row(
        batch.token_ids[tokens],
        mask.long(),
        batch.logprobs[tokens],
        batch.advantages[tokens],
        batch.token_types[tokens].long(),
        int(mask.int().argmax()),
        sum(len(sample.placeholders) for sample in batch.samples[:number]),
        len(batch.samples[number].placeholders),
    )


def _padding_row(pad_id: int) -> _Row:
    """Return a row without a token that trains. The model sees two tokens, so that no row is without attention."""
    return _Row(
        torch.full((2,), pad_id),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int64),
        split=1,
        first_image=0,
        images=0,
    )


def _inputs(rows: Sequence[_Row], images: "_ImageParts", trained_tokens: int, pad_id: int) -> dict[str, Any]:
    """Return TRL's dictionary for the rows of a micro-batch."""
    ones = [torch.ones_like(row.token_ids) for row in rows]
    logprobs = _completions(rows, [row.logprobs for row in rows], 0.0)
    inputs: dict[str, Any] = {
        "prompt_ids": _prompts(rows, [row.token_ids for row in rows], pad_id),
        "prompt_mask": _prompts(rows, ones, 0),
        "completion_ids": _completions(rows, [row.token_ids for row in rows], pad_id),
        "completion_mask": _completions(rows, ones, 0),
        "tool_mask": _completions(rows, [row.mask for row in rows], 0),
        "advantages": _completions(rows, [row.advantages for row in rows], 0.0),
        "old_per_token_logps": logprobs,
        "sampling_per_token_logps": logprobs.clone(),
        "num_items_in_batch": torch.tensor(trained_tokens),
    }
    # A vision tower refuses pixels of no image.
    if any(row.images for row in rows):
        types = [row.token_types for row in rows]
        inputs |= images.inputs(rows)
        inputs["num_images"] = [row.images for row in rows]
        inputs["mm_token_type_ids"] = torch.cat([_prompts(rows, types, 0), _completions(rows, types, 0)], dim=1)
    return inputs


def _prompts(rows: Sequence[_Row], values: Sequence[torch.Tensor], padding: float) -> torch.Tensor:
    return _padded([value[: row.split] for row, value in zip(rows, values, strict=True)], padding, "left")


def _completions(rows: Sequence[_Row], values: Sequence[torch.Tensor], padding: float) -> torch.Tensor:
    return _padded([value[row.split :] for row, value in zip(rows, values, strict=True)], padding, "right")


def _padded(values: Sequence[torch.Tensor], padding: float, side: Literal["left", "right"]) -> torch.Tensor:
    padded: torch.Tensor = torch.nn.utils.rnn.pad_sequence(
        list(values), batch_first=True, padding_value=padding, padding_side=side
    )
    return padded


class _ImageParts:
    """Finds the pixels of single rows in the pixels of the whole batch."""

    def __init__(self, batch: Batch) -> None:
        self._pixels = batch.pixels
        patches = batch.pixels[_GRID].prod(dim=-1).tolist() if batch.pixels else []
        self._starts = [sum(patches[:at]) for at in range(len(patches) + 1)]

    def inputs(self, rows: Sequence[_Row]) -> dict[str, torch.Tensor]:
        """Return the pixels and the grids of these rows, which follow each other in the batch."""
        with_images = [row for row in rows if row.images]
        first, last = with_images[0].first_image, with_images[-1].first_image + with_images[-1].images
        return {
            "pixel_values": self._pixels["pixel_values"][self._starts[first] : self._starts[last]],
            _GRID: self._pixels[_GRID][first:last],
        }


def _check_pixels(batch: Batch) -> None:
    if not len(batch.placeholders):
        return
    if not batch.pixels:
        raise ConfigurationError(
            f"the step has {len(batch.placeholders)} images, but no pixels. Pass "
            "materializer=Materializer.from_pretrained(checkpoint) to open_batches()."
        )
    if set(batch.pixels) != {"pixel_values", _GRID}:
        raise ConfigurationError(
            f"TRL cannot pass the inputs {', '.join(sorted(batch.pixels))} of this model family. RolloutGRPOTrainer "
            "trains families with pixel_values and image_grid_thw, such as Qwen-VL."
        )
    if not batch.pixels["pixel_values"].is_floating_point():
        raise ConfigurationError(
            "the pixels are not normalised, and TRL's model needs them normalised. Create the Materializer without "
            'pixels="uint8".'
        )
