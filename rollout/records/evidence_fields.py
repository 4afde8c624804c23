"""Encodes and decodes what an engine reports about an answer: versions, experts and sampling masks.

The functions that decode raise RecordError if a value is not valid.
"""

from typing import Any

import numpy as np

from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.fields import Wire, pop_array, pop_field, pop_integer, pop_token_ids
from rollout.records.kinds import RecordError


def encode_evidence(evidence: RoutedExperts | SamplingMask | None) -> dict[str, Any] | None:
    """Return the fields of experts or masks; None if the engine did not report them."""
    return None if evidence is None else {name: getattr(evidence, name) for name in evidence.__slots__}


def decode_routed_experts(wire: Wire | None, token_count: int) -> RoutedExperts | None:
    """Decode the experts of a turn whose prompt and answer have `token_count` tokens."""
    if wire is None:
        return None
    first, rows = pop_integer(wire, "first"), pop_field(wire, "rows", np.ndarray)
    if rows.ndim != 3 or rows.dtype.kind not in "iu" or first + len(rows) >= max(token_count, 1):
        raise RecordError(
            f"'experts' has rows of {rows.dtype} with the shape {rows.shape}, from token {first} on. Expected integers "
            f"of the shape [token, layer, choice], and no row for the last of {token_count} tokens."
        )
    return RoutedExperts(first, rows)


def decode_sampling_mask(wire: Wire | None, sampled_count: int) -> SamplingMask | None:
    """Decode the masks of an answer with `sampled_count` tokens."""
    if wire is None:
        return None
    ids, lengths = pop_token_ids(wire, "ids"), pop_array(wire, "lengths", np.int32)
    if len(lengths) != sampled_count or (lengths < 0).any() or int(lengths.sum()) != len(ids):
        raise RecordError(
            f"'masks' has {len(ids)} ids and {len(lengths)} lengths; expected one length for each of {sampled_count} "
            "sampled tokens, and as many ids as the lengths add up to."
        )
    return SamplingMask(ids, lengths)


def decode_version_spans(wire: list[Any], sampled_count: int) -> tuple[VersionSpan, ...]:
    """Decode the ranges of the policy versions of an answer with `sampled_count` tokens."""
    spans: list[VersionSpan] = []
    end_before = 0
    for version, start, end in zip(wire[::3], wire[1::3], wire[2::3], strict=True):
        if (type(version), type(start), type(end)) != (str, int, int) or start != end_before or end < start:
            raise RecordError(
                f"'versions' says that {version!r} sampled the tokens {start!r} to {end!r}; expected a range from "
                f"{end_before} on, where the previous one ends."
            )
        spans.append(VersionSpan(version, start, end))
        end_before = end
    if wire and end_before != sampled_count:
        raise RecordError(f"'versions' covers {end_before} tokens, but {sampled_count} tokens were sampled.")
    return tuple(spans)
