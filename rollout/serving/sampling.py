"""Drawing an answer from a policy's slots, with log-probs that are true to how it was drawn.

A slot's candidates are whole strings of one or more tokens. One candidate is drawn from the softmax of margin / T, and
then told token by token: the probability of a token, given the tokens before it in the slot, is the share of the
candidates that go on with it among those that are still possible. The product over a candidate's tokens is exactly the
candidate's probability. All sums are over logarithms, so that no temperature makes a log-prob infinite.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rollout.serving.engine import SampledToken
from rollout.serving.policies import Slot
from rollout.serving.protocol import GenerateRequest

# As in vLLM, below this the sampler is greedy.
GREEDY_BELOW = 1e-5
# Divided by the least temperature it is still far from infinite.
_GREATEST_MARGIN = 1e9

TokenIds = tuple[int, ...]


class PolicyFault(Exception):
    """A scripted policy returned something that cannot be drawn from."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    token_ids: TokenIds
    logprob: float


def sample(
    slots: Iterable[Slot], temperature: float, draw: random.Random, encode: Callable[[str], TokenIds]
) -> list[SampledToken]:
    """Draw one candidate for each slot and return the tokens of all of them.

    Raises:
        PolicyFault: a slot has no candidate, a margin is out of bounds, or one candidate begins another.
    """
    return [token for slot in slots for token in _sample_slot(slot, temperature, draw, encode)]


def certain(token_id: int) -> SampledToken:
    """A token that nothing else was possible for."""
    return SampledToken(token_id, 0.0, 1, ((token_id, 0.0),))


def draw_for(request: GenerateRequest) -> random.Random:
    """The randomness of one answer; a seed makes it a function of the request, and of nothing else.

    The prompt enters too: were it the seed alone, all turns of a rollout that sends one seed would err together.
    """
    seed = request.sampling_params.seed
    if seed is None:
        return random.Random()  # noqa: S311 - sampling, not a secret
    digest = hashlib.sha256(f"{seed}".encode())
    digest.update(array("Q", request.token_ids))
    digest.update("".join(part.uuid for part in request.content_parts or ()).encode())
    return random.Random(digest.digest())  # noqa: S311 - reproducible, not secret


def _sample_slot(
    slot: Slot, temperature: float, draw: random.Random, encode: Callable[[str], TokenIds]
) -> list[SampledToken]:
    if not slot.margins:
        raise PolicyFault("a slot has no candidates")
    _require_prefix_free({text: encode(text) for text in slot.margins})
    alive = _distribution(slot, temperature, encode)
    chosen = draw.choices(alive, weights=[math.exp(one.logprob) for one in alive])[0]
    tokens: list[SampledToken] = []
    for depth, token_id in enumerate(chosen.token_ids):
        if len(alive) == 1:
            tokens.append(certain(token_id))
            continue
        groups: dict[int, list[_Candidate]] = {}
        for one in alive:
            groups.setdefault(one.token_ids[depth], []).append(one)
        total = _log_sum(alive)
        # `+ 0.0` turns the -0.0 of a single group into 0.0
        logprobs = {token: min(0.0, _log_sum(group) - total) + 0.0 for token, group in groups.items()}
        likeliest = tuple(sorted(logprobs.items(), key=lambda item: -item[1]))
        own = logprobs[token_id]
        rank = 1 + sum(logprob > own for _, logprob in likeliest)
        tokens.append(SampledToken(token_id, own, rank, likeliest))
        alive = groups[token_id]
    return tokens


def _distribution(slot: Slot, temperature: float, encode: Callable[[str], TokenIds]) -> list[_Candidate]:
    if not all(abs(margin) <= _GREATEST_MARGIN for margin in slot.margins.values()):
        raise PolicyFault(f"the margins {dict(slot.margins)} are not all numbers within ±{_GREATEST_MARGIN:g}")
    if temperature < GREEDY_BELOW:
        best = max(slot.margins, key=lambda text: slot.margins[text])
        return [_Candidate(encode(best), 0.0)]
    greatest = max(slot.margins.values())
    scaled = [(encode(text), (margin - greatest) / temperature) for text, margin in slot.margins.items()]
    total = math.log(math.fsum(math.exp(value) for _, value in scaled))
    return [_Candidate(token_ids, value - total) for token_ids, value in scaled]


def _log_sum(candidates: Sequence[_Candidate]) -> float:
    greatest = max(one.logprob for one in candidates)
    return greatest + math.log(math.fsum(math.exp(one.logprob - greatest) for one in candidates))


def _require_prefix_free(candidates: dict[str, TokenIds]) -> None:
    """Where one candidate begins another, tokens would not tell which of the two was drawn."""
    ordered = sorted(candidates.items(), key=lambda item: item[1])
    if not ordered[0][1]:
        raise PolicyFault("a candidate is the empty text")
    for (shorter, start), (longer, whole) in pairwise(ordered):
        if whole[: len(start)] == start:
            raise PolicyFault(f"the candidate {shorter!r} begins the candidate {longer!r}, in tokens")
