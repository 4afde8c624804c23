"""Measures how far the engine's log-probs differ from those of the checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from renderers_adapter.creation import load_processor_config
from rollout.doctor.engines.forward.conversation import PlayedConversation
from rollout.doctor.engines.forward.network import CheckpointNetwork
from rollout.doctor.engines.forward.normalisation import Normalisation
from rollout.doctor.engines.forward.verdict import Difference, Measurement
from rollout.errors import ConfigurationError
from rollout.images.processors import ResizeBackend, installed_backend
from rollout.trainer import Batch, Materializer, collate, compare_logprobs

_COMPARED_VERSION = "0"


def measure(
    network: CheckpointNetwork,
    played: PlayedConversation,
    *,
    checkpoint: Path,
    family: str | None,
    logprobs_mode: str | None,
) -> Measurement:
    """Compute the log-probs of a conversation with each resize backend, and return all differences.

    Args:
        network: the network of the checkpoint.
        played: the conversation.
        checkpoint: the directory of the checkpoint.
        family: the family of the model's images; None: it takes no images.
        logprobs_mode: which log-probs the engine gives; None: those that fit better.

    Raises:
        CheckNotMade: the batch does not fit into memory.
        MaterializeError: an image is missing, or does not fit its sample.
    """
    batches, unavailable = _batches(played, checkpoint, family)
    passes = {backend: (batch, network.logprobs(batch)) for backend, batch in batches.items()}
    if not passes:
        return Measurement(unavailable_backends=unavailable)
    first_batch, first_logprobs = next(iter(passes.values()))
    text_differences = [_difference(_text_turns(first_batch, family), logprobs) for logprobs in first_logprobs]
    mode = logprobs_mode or _better_mode(*text_differences)
    at = 1 if mode == "raw_logprobs" else 0
    return Measurement(
        text=text_differences[at],
        by_backend={
            backend: _difference(_image_turns(batch), logprobs[at])
            for backend, (batch, logprobs) in passes.items()
            if backend is not None
        },
        unavailable_backends=unavailable,
        default_backend=None if family is None else installed_backend(),
        mistakes=(
            {"each log-prob one token too late": _difference(first_batch, first_logprobs[at].roll(1, dims=1))}
            if family is None
            else _wrong_normalisations(network, tuple(batches.values()), at, checkpoint)
        ),
        logprobs_mode=mode,
        effect_of_ban=float((first_logprobs[0] - first_logprobs[1])[first_batch.mask].abs().max()),
    )


def _better_mode(after_ban: Difference, before_ban: Difference) -> str:
    return "raw_logprobs" if before_ban.order < after_ban.order else "processed_logprobs"


def _batches(
    played: PlayedConversation, checkpoint: Path, family: str | None
) -> tuple[dict[ResizeBackend | None, Batch], dict[ResizeBackend, str]]:
    """Return a batch for each resize backend, or one for a model without images, and why a backend has none."""
    if family is None:
        return {None: _comparable(collate(played.samples))}, {}
    batches: dict[ResizeBackend | None, Batch] = {}
    unavailable: dict[ResizeBackend, str] = {}
    for backend in get_args(ResizeBackend):
        materializer = Materializer.from_pretrained(checkpoint, family=family, backend=backend)
        try:
            batches[backend] = _comparable(collate(played.samples, materializer=materializer))
        except ConfigurationError as error:
            unavailable[backend] = str(error)
    return batches, unavailable


def _comparable(batch: Batch) -> Batch:
    """Return the batch with one version for all tokens, because the check compares them with one checkpoint."""
    return replace(batch, versions=(_COMPARED_VERSION,), version_index=torch.zeros_like(batch.version_index))


def _text_turns(batch: Batch, family: str | None) -> Batch:
    """Return the batch with only those tokens trained that no image precedes."""
    return batch if family is None else replace(batch, mask=batch.mask & (batch.turn_index == 0))


def _image_turns(batch: Batch) -> Batch:
    return replace(batch, mask=batch.mask & (batch.turn_index > 0))


def _difference(batch: Batch, logprobs: torch.Tensor) -> Difference:
    comparison = compare_logprobs(batch, logprobs, int(_COMPARED_VERSION))
    return Difference(
        comparison.compared_tokens,
        comparison.max_difference,
        comparison.mean_difference,
        invalid_tokens=comparison.invalid_tokens,
    )


def _wrong_normalisations(
    network: CheckpointNetwork, batches: Sequence[Batch], at: int, checkpoint: Path
) -> dict[str, Difference]:
    """Return the smallest difference of all resize backends for each normalisation of other checkpoints."""
    own = Normalisation.of(load_processor_config(checkpoint))
    differences = {}
    for other in own.others():
        changed = [
            replace(batch, pixels={**batch.pixels, "pixel_values": own.change(batch.pixels["pixel_values"], other)})
            for batch in batches
        ]
        differences[str(other)] = min(
            (_difference(_image_turns(batch), network.logprobs(batch)[at]) for batch in changed),
            key=lambda difference: difference.order,
        )
    return differences
