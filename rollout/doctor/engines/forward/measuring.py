"""Measures how far the engine's log-probs differ from those of the checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from renderers_adapter.adapter import load_processor_config
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
    after_ban, before_ban = (
        {backend: _difference(batch, logprobs[at]) for backend, (batch, logprobs) in passes.items()} for at in range(2)
    )
    smallest = [min(found.values(), key=_mean) for found in (after_ban, before_ban)]
    mode = logprobs_mode or ("raw_logprobs" if _mean(smallest[1]) < _mean(smallest[0]) else "processed_logprobs")
    at = 1 if mode == "raw_logprobs" else 0
    by_backend = (after_ban, before_ban)[at]
    best = min(by_backend, key=lambda backend: _mean(by_backend[backend]))
    batch, logprobs = passes[best]
    return Measurement(
        by_backend=by_backend,
        unavailable_backends=unavailable,
        default_backend=None if family is None else installed_backend(),
        before_images=_difference(_first_turn(batch), logprobs[at]),
        controls=_controls(network, batch, logprobs[at], at, checkpoint),
        logprobs_mode=mode,
        effect_of_ban=float((logprobs[0] - logprobs[1])[batch.mask].abs().max()),
    )


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


def _first_turn(batch: Batch) -> Batch:
    return replace(batch, mask=batch.mask & (batch.turn_index == 0))


def _difference(batch: Batch, logprobs: torch.Tensor) -> Difference:
    comparison = compare_logprobs(batch, logprobs, int(_COMPARED_VERSION))
    return Difference(
        comparison.compared_tokens,
        comparison.max_difference,
        comparison.mean_difference,
        invalid_tokens=comparison.invalid_tokens,
    )


def _mean(difference: Difference) -> float:
    """Return the mean to sort by; a NaN would be neither smaller nor larger than others."""
    return difference.mean if difference.is_finite else float("inf")


def _controls(
    network: CheckpointNetwork, batch: Batch, logprobs: torch.Tensor, at: int, checkpoint: Path
) -> dict[str, Difference]:
    """Return the differences that known mistakes would make, by what is wrong in them."""
    if "pixel_values" not in batch.pixels:
        return {"each log-prob one token too late": _difference(batch, logprobs.roll(1, dims=1))}
    own = Normalisation.of(load_processor_config(checkpoint))
    pixels = batch.pixels["pixel_values"]
    return {
        str(other): _difference(
            batch,
            network.logprobs(replace(batch, pixels={**batch.pixels, "pixel_values": own.change(pixels, other)}))[at],
        )
        for other in own.others()
    }
