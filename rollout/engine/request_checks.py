"""Finds requests that the engine would answer with status 200 and garbage, or that would crash the engine.

The checks need only the request and take microseconds. Every pad token must have an image, and every image a pad token.
The prompt must not be expanded already, and the expanded prompt must be its expansion. The engine must know every
sampling key, because it ignores unknown keys.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout.config.sampling import SAMPLING_KEYS
from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.request import GenerateRequest


def check_request(request: GenerateRequest) -> None:
    """Check a request; raises RequestRefusedLocally if the engine would answer it with garbage, or crash."""
    try:
        _check_prompt(request.prompt)
        pad_positions = _find_pad_positions(request)
        _check_expansion(request, pad_positions)
        for index, image in enumerate(request.images):
            if image.problem is not None:
                raise RequestRefusedLocally(f"image {index} {image.problem}")
    except RequestRefusedLocally as error:
        raise RequestRefusedLocally(f"{request.request_id}: {error}") from None
    _check_sampling(request.sampling)


def _check_prompt(prompt: npt.NDArray[np.int32]) -> None:
    if len(prompt) == 0:
        raise RequestRefusedLocally("the prompt is empty.")
    if int(prompt.min()) < 0:
        raise RequestRefusedLocally(f"the prompt has a negative token id at position {int(np.argmax(prompt < 0))}.")


def _find_pad_positions(request: GenerateRequest) -> npt.NDArray[np.int64]:
    pad_positions = (
        np.zeros(0, np.int64) if request.pad_id is None else np.flatnonzero(request.prompt == request.pad_id)
    )
    adjacent = np.flatnonzero(np.diff(pad_positions) == 1)
    if len(adjacent):
        raise RequestRefusedLocally(
            f"two image pad tokens are next to each other at position {int(pad_positions[adjacent[0]])}, so the prompt "
            "is expanded already. Send one pad token per image; the engine expands it."
        )
    if len(pad_positions) != len(request.images):
        raise RequestRefusedLocally(
            f"the prompt has {len(pad_positions)} image pad tokens for {len(request.images)} images. Send every "
            "image of the conversation, also those of earlier turns, once per pad token and in the order of the prompt."
        )
    return pad_positions


def _check_expansion(request: GenerateRequest, pad_positions: npt.NDArray[np.int64]) -> None:
    placeholders = request.placeholders
    hashes = [placeholder.hash for placeholder in placeholders]
    if hashes != [image.hash for image in request.images]:
        raise RequestRefusedLocally(
            f"the placeholders are for the images {hashes[:4]}, but the request has the images "
            f"{[image.hash for image in request.images][:4]}."
        )
    lengths = np.fromiter((mark.length for mark in placeholders), np.int64, len(placeholders))
    if (lengths < 1).any():
        raise RequestRefusedLocally(f"the placeholder of image {int(np.argmax(lengths < 1))} has no tokens.")
    expected_offsets = pad_positions + np.cumsum(lengths - 1) - (lengths - 1)
    given_offsets = np.fromiter((mark.offset for mark in placeholders), np.int64, len(placeholders))
    if (given_offsets != expected_offsets).any():
        index = int(np.argmax(given_offsets != expected_offsets))
        raise RequestRefusedLocally(
            f"the placeholder of image {index} is at {given_offsets[index]}, but its pad tokens are at "
            f"{expected_offsets[index]}; both must be the same range."
        )
    repeats = np.ones(len(request.prompt), np.int64)
    repeats[pad_positions] = lengths
    if not np.array_equal(np.repeat(request.prompt, repeats), request.expanded_prompt):
        raise RequestRefusedLocally(
            "the expanded prompt must be the prompt in which each pad token is repeated for the length of its "
            "placeholder, but it is not."
        )


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    unknown_keys = sorted(set(sampling) - SAMPLING_KEYS)
    if unknown_keys:
        raise RequestRefusedLocally(
            f"the sampling key {unknown_keys[0]!r} cannot be set here. The keys are {', '.join(sorted(SAMPLING_KEYS))}."
        )
    temperature = sampling.get("temperature")
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature < 0:
        raise RequestRefusedLocally(f"the temperature is {temperature!r}; expected a number of at least 0.")
    for key, value in sampling.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestRefusedLocally(f"{key} is {value}; give a finite number, because JSON has no others.")
    stop_token_ids = sampling.get("stop_token_ids", ())
    if isinstance(stop_token_ids, str) or not isinstance(stop_token_ids, Collection):
        raise RequestRefusedLocally(f"stop_token_ids is {stop_token_ids!r}; expected a list of token ids.")
