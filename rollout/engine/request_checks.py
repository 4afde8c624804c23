"""What the engine would answer with 200 and garbage, or die of, and what is therefore never sent.

Checked against the request alone, on every request, in microseconds: that every pad token has its image and every image
its pad token, that the prompt is not expanded already, that it expands to what we expect the engine to see, and that
the engine knows every sampling key, because it ignores those that it does not know.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.request import GenerateRequest

SAMPLING_KEYS = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "seed"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "repetition_detection"),
        *("max_tokens", "min_tokens", "thinking_token_budget"),
        *("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output"),
        *("bad_words", "allowed_token_ids", "logit_bias", "structured_outputs"),
        *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
        *("skip_reading_prefix_cache", "extra_args"),
    )
)
"""vLLM's, without those that would change how many answers there are or what evidence comes with them."""


def refuse_unsound(request: GenerateRequest) -> None:
    """Raises RequestRefusedLocally: the engine would answer this with garbage, or die of it."""
    try:
        _refuse_prompt(request.prompt)
        pads = _pads(request)
        _refuse_expansion(request, pads)
        for index, image in enumerate(request.images):
            if image.fault is not None:
                raise RequestRefusedLocally(f"image {index} {image.fault}")
        _refuse_sampling(request.sampling)
    except RequestRefusedLocally as error:
        raise RequestRefusedLocally(f"{request.request_id}: {error}") from None


def _refuse_prompt(prompt: npt.NDArray[np.int32]) -> None:
    if len(prompt) == 0:
        raise RequestRefusedLocally("the prompt is empty.")
    if int(prompt.min()) < 0:
        raise RequestRefusedLocally(f"the prompt holds a negative token id at {int(np.argmax(prompt < 0))}.")


def _pads(request: GenerateRequest) -> npt.NDArray[np.int64]:
    pads = np.zeros(0, np.int64) if request.pad_id is None else np.flatnonzero(request.prompt == request.pad_id)
    touching = np.flatnonzero(np.diff(pads) == 1)
    if len(touching):
        raise RequestRefusedLocally(
            f"two image pad tokens touch at {int(pads[touching[0]])}: the prompt is expanded already. "
            "Send one pad token per image; the engine expands it."
        )
    if len(pads) != len(request.images):
        raise RequestRefusedLocally(
            f"the prompt holds {len(pads)} image pad tokens for {len(request.images)} images. Send every image of the "
            "conversation, prior turns included, once per pad token and in the order of the prompt."
        )
    return pads


def _refuse_expansion(request: GenerateRequest, pads: npt.NDArray[np.int64]) -> None:
    marks = request.placeholders
    hashes = [mark.hash for mark in marks]
    if hashes != [image.hash for image in request.images]:
        raise RequestRefusedLocally(
            f"the prompt has places for the images {hashes[:4]}, the references name "
            f"{[image.hash for image in request.images][:4]}."
        )
    lengths = np.fromiter((mark.length for mark in marks), np.int64, len(marks))
    if (lengths < 1).any():
        raise RequestRefusedLocally(f"image {int(np.argmax(lengths < 1))} takes no tokens.")
    offsets = pads + np.cumsum(lengths - 1) - (lengths - 1)
    placed = np.fromiter((mark.offset for mark in marks), np.int64, len(marks))
    if (placed != offsets).any():
        index = int(np.argmax(placed != offsets))
        raise RequestRefusedLocally(
            f"image {index} is placed at {placed[index]}, its pad token expands to {offsets[index]}; "
            "a range must lie exactly on its image's pad tokens."
        )
    repeats = np.ones(len(request.prompt), np.int64)
    repeats[pads] = lengths
    if not np.array_equal(np.repeat(request.prompt, repeats), request.expanded):
        raise RequestRefusedLocally("the expanded prompt is not the prompt with each pad token repeated.")


def _refuse_sampling(sampling: Mapping[str, Any]) -> None:
    unknown = sorted(set(sampling) - SAMPLING_KEYS)
    if unknown:
        raise RequestRefusedLocally(
            f"the sampling key {unknown[0]!r} may not be set here, and the engine ignores keys that it does not know. "
            f"Known are {', '.join(sorted(SAMPLING_KEYS))}."
        )
    temperature = sampling.get("temperature")
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature < 0:
        raise RequestRefusedLocally(
            f"the temperature is {temperature!r}; expected a number from 0, or the engine would choose one of its own."
        )
    for key, value in sampling.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestRefusedLocally(f"{key} is {value}, which goes out as null: the engine would choose by itself.")
    stops = sampling.get("stop_token_ids", ())
    if isinstance(stops, str) or not isinstance(stops, Collection):
        raise RequestRefusedLocally(f"stop_token_ids is {stops!r}; expected a list of token ids.")
