"""Samples an answer from the slots of a scripted policy, with the exact log-probs of its tokens.

A slot's candidates are strings of one or more tokens. One candidate is sampled from the softmax of logit / T, and then
written token by token. At each token, the candidates that begin with the tokens so far are still possible. The
probability of the next token is its share of their probability. So the product over a candidate's tokens is the
candidate's probability. All sums are over logarithms, so that no temperature makes a log-prob infinite.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from rollout.serving.engine import SampledToken
from rollout.serving.policies import AnswerSlot
from rollout.serving.protocol import GenerateBody

# Below this temperature, the likeliest token is chosen, as in vLLM.
MIN_SAMPLING_TEMPERATURE = 1e-5
# A logit is still finite after the division by the lowest temperature.
_MAX_ABS_LOGIT = 1e9

TokenIds = tuple[int, ...]


class PolicyFault(Exception):
    """A scripted policy returned slots from which no answer can be sampled."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    token_ids: TokenIds
    logprob: float


def sample_slots(
    slots: Iterable[AnswerSlot],
    temperature: float,
    rng: random.Random,
    encode: Callable[[str], TokenIds],
    banned_ids: Set[int] = frozenset(),
) -> list[SampledToken]:
    """Sample one candidate without a banned token for each slot, and return the tokens of all these candidates.

    Raises:
        PolicyFault: a slot has no candidate, a logit is out of bounds, or a candidate is the beginning of another one.
    """
    allowed_slots = [_without_banned(slot, banned_ids, encode) for slot in slots]
    return [token for slot in allowed_slots for token in _sample_slot(slot, temperature, rng, encode)]


def certain_token(token_id: int) -> SampledToken:
    """Return a sampled token that was the only possible one."""
    return SampledToken(token_id, 0.0, 1, ((token_id, 0.0),))


def rng_for_request(request: GenerateBody) -> random.Random:
    """Return the random number generator for one answer; with a seed, its numbers depend only on the request.

    The prompt is part of the seed. With the request's seed alone, all turns of a rollout would make mistakes together.
    """
    seed = request.sampling_params.seed
    if seed is None:
        return random.Random()  # noqa: S311 - sampling, not a secret
    digest = hashlib.sha256(f"{seed}".encode())
    digest.update(array("Q", request.token_ids))
    digest.update("".join(part.uuid for part in request.content_parts or ()).encode())
    return random.Random(digest.digest())  # noqa: S311 - reproducible, not secret


def _without_banned(slot: AnswerSlot, banned_ids: Set[int], encode: Callable[[str], TokenIds]) -> AnswerSlot:
    allowed = {text: logit for text, logit in slot.logits.items() if banned_ids.isdisjoint(encode(text))}
    if slot.logits and not allowed:
        raise PolicyFault(f"each candidate of a slot has a token that the request bans: {sorted(slot.logits)[:4]}")
    return replace(slot, logits=allowed)


def _sample_slot(
    slot: AnswerSlot, temperature: float, rng: random.Random, encode: Callable[[str], TokenIds]
) -> list[SampledToken]:
    if not slot.logits:
        raise PolicyFault("a slot has no candidates; give it at least one")
    _require_prefix_free({text: encode(text) for text in slot.logits})
    remaining_candidates = _distribution(slot, temperature, encode)
    chosen = rng.choices(
        remaining_candidates, weights=[math.exp(candidate.logprob) for candidate in remaining_candidates]
    )[0]
    tokens: list[SampledToken] = []
    for depth, token_id in enumerate(chosen.token_ids):
        if len(remaining_candidates) == 1:
            tokens.append(certain_token(token_id))
            continue
        candidates_by_token: dict[int, list[_Candidate]] = {}
        for candidate in remaining_candidates:
            candidates_by_token.setdefault(candidate.token_ids[depth], []).append(candidate)
        total = _log_sum_exp(remaining_candidates)
        # `+ 0.0` changes the -0.0 of a single group into 0.0.
        logprobs = {token: min(0.0, _log_sum_exp(group) - total) + 0.0 for token, group in candidates_by_token.items()}
        top_logprobs = tuple(sorted(logprobs.items(), key=lambda item: -item[1]))
        token_logprob = logprobs[token_id]
        rank = 1 + sum(logprob > token_logprob for _, logprob in top_logprobs)
        tokens.append(SampledToken(token_id, token_logprob, rank, top_logprobs))
        remaining_candidates = candidates_by_token[token_id]
    return tokens


def _distribution(slot: AnswerSlot, temperature: float, encode: Callable[[str], TokenIds]) -> list[_Candidate]:
    if not all(abs(logit) <= _MAX_ABS_LOGIT for logit in slot.logits.values()):
        raise PolicyFault(f"the logits {dict(slot.logits)} are not all numbers within ±{_MAX_ABS_LOGIT:g}")
    if temperature < MIN_SAMPLING_TEMPERATURE:
        best = max(slot.logits, key=lambda text: slot.logits[text])
        return [_Candidate(encode(best), 0.0)]
    max_logit = max(slot.logits.values())
    scaled_logits = [(encode(text), (logit - max_logit) / temperature) for text, logit in slot.logits.items()]
    total = math.log(math.fsum(math.exp(value) for _, value in scaled_logits))
    return [_Candidate(token_ids, value - total) for token_ids, value in scaled_logits]


def _log_sum_exp(candidates: Sequence[_Candidate]) -> float:
    greatest = max(candidate.logprob for candidate in candidates)
    return greatest + math.log(math.fsum(math.exp(one.logprob - greatest) for one in candidates))


def _require_prefix_free(candidates: dict[str, TokenIds]) -> None:
    """Raise PolicyFault if a candidate begins with another one; the tokens would not show which of them was sampled."""
    ordered = sorted(candidates.items(), key=lambda item: item[1])
    if not ordered[0][1]:
        raise PolicyFault("a candidate is an empty string")
    for (shorter_text, shorter_ids), (longer_text, longer_ids) in pairwise(ordered):
        if longer_ids[: len(shorter_ids)] == shorter_ids:
            raise PolicyFault(f"the candidate {longer_text!r} begins with the tokens of the candidate {shorter_text!r}")
