"""Reads the values of a request's keys that all dialects have: sampling, stop texts, biases."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.reading import parse, require

_NUMBERS = {
    "temperature": (0, math.inf, "a number of at least 0"),
    "top_p": (0, 1, "a number above 0 and at most 1"),
    "min_p": (0, 1, "a number from 0 to 1"),
    "presence_penalty": (-2, 2, "a number from -2 to 2"),
    "frequency_penalty": (-2, 2, "a number from -2 to 2"),
    "repetition_penalty": (0, math.inf, "a number above 0"),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_INTEGERS = {"max_tokens": 1, "top_k": -1, "seed": 0}
_MAX_DIGITS = 9


def read_value(fields: Mapping[str, msgspec.Raw], key: str) -> Any:
    """Return the value of a key; None if it is null or absent. Raises RequestRefused."""
    return parse(fields[key], key) if key in fields else None


def read_typed(fields: Mapping[str, msgspec.Raw], key: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """Return the value of a key; None if it is null or absent. Raises RequestRefused if it is of another kind."""
    value = read_value(fields, key)
    return None if value is None else require(value, kind, key, expected)


def read_sampling(
    fields: Mapping[str, msgspec.Raw], *, max_tokens_keys: tuple[str, ...], stop_key: str = "stop"
) -> dict[str, Any]:
    """Return the sampling keys of a request, with the names of `engine.sampling`. Raises RequestRefused.

    Args:
        fields: the keys of the request.
        max_tokens_keys: the names of the limit for the answer in this dialect; the first one that is set counts.
        stop_key: the name of the stop texts in this dialect.
    """
    sampling: dict[str, Any] = {}
    for key, (low, high, expected) in _NUMBERS.items():
        number = read_typed(fields, key, (int, float), expected)
        if number is None:
            continue
        if not low <= number <= high or (number == 0 and key in _ABOVE_ZERO):
            raise RequestRefused(f"{key} is {number}; it must be {expected}.", parameter=key)
        sampling[key] = number
    for name, low in _INTEGERS.items():
        for key in max_tokens_keys if name == "max_tokens" else (name,):
            expected = f"a whole number of at least {low}"
            count = read_typed(fields, key, int, expected)
            if count is None:
                continue
            if not low <= count < 2**63:
                raise RequestRefused(f"{key} is {count}; it must be {expected}.", parameter=key)
            sampling.setdefault(name, count)
    if stop := _read_stop(fields, stop_key):
        sampling["stop"] = stop
    return sampling


def read_logit_bias(fields: Mapping[str, msgspec.Raw]) -> dict[int, float]:
    """Return the key `logit_bias`, by token id; empty without it. Raises RequestRefused."""
    bias = read_typed(fields, "logit_bias", dict, "an object of token ids and numbers") or {}
    weights: dict[int, float] = {}
    for token, weight in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= _MAX_DIGITS):
            raise RequestRefused("logit_bias has a key that is no token id.", parameter="logit_bias")
        weights[int(token)] = require(weight, (int, float), f"logit_bias.{token}", "a number")
    return weights


def _read_stop(fields: Mapping[str, msgspec.Raw], key: str) -> list[str]:
    stop = read_value(fields, key)
    if stop is None:
        return []
    texts = [stop] if isinstance(stop, str) else require(stop, list, key, "a string or a list of strings")
    for index, text in enumerate(texts):
        place = f"{key}[{index}]"
        if not require(text, str, place, "a string"):
            raise RequestRefused(f"{place} is empty; it must have at least one letter.", parameter=place)
    return list(texts)
