"""Drawing from slots: the draws follow the margins, and the log-probs are exact."""

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.serving.engine import SampledToken
from rollout.serving.policies import AnswerSlot
from rollout.serving.sampling import PolicyFault, sample_slots

# Candidates of several tokens that share their beginnings.
TOKENS: Mapping[str, tuple[int, ...]] = {
    "red": (1,),
    "dark red": (2, 1),
    "dark blue": (2, 3),
    "dark green": (2, 4, 5),
    "dark grey": (2, 4, 6),
    "": (),
    "dark": (2,),
}
WORDS = ("red", "dark red", "dark blue", "dark green", "dark grey")
MARGINS = dict(zip(WORDS, (1.0, 2.0, 0.0, 1.5, -1.0), strict=True))


def draw(margins: Mapping[str, float], temperature: float, seed: int) -> list[SampledToken]:
    return sample_slots([AnswerSlot(margins)], temperature, random.Random(seed), TOKENS.__getitem__)


def text_of(tokens: list[SampledToken]) -> str:
    ids = tuple(token.token_id for token in tokens)
    return next(text for text, candidate in TOKENS.items() if candidate == ids)


def softmax(margins: Mapping[str, float], temperature: float) -> dict[str, float]:
    weights = {text: math.exp(margin / temperature) for text, margin in margins.items()}
    return {text: weight / sum(weights.values()) for text, weight in weights.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_candidates_are_drawn_by_the_softmax_of_their_margins(temperature: float) -> None:
    generator = random.Random(11)
    draws = 20_000
    counts = Counter(
        text_of(sample_slots([AnswerSlot(MARGINS)], temperature, generator, TOKENS.__getitem__)) for _ in range(draws)
    )
    expected = softmax(MARGINS, temperature)
    chi_square = sum((counts[text] - draws * share) ** 2 / (draws * share) for text, share in expected.items())
    # four degrees of freedom: 18.5 is exceeded once in a thousand times
    assert chi_square < 18.5


@given(
    margins=st.dictionaries(st.sampled_from(WORDS), st.floats(-30, 30), min_size=1),
    temperature=st.floats(1e-4, 100),
    seed=st.integers(0, 2**32),
)
def test_the_logprobs_of_a_candidate_add_up_to_its_probability(
    margins: dict[str, float], temperature: float, seed: int
) -> None:
    tokens = draw(margins, temperature, seed)
    greatest = max(margins.values())
    shifted = {text: margin - greatest for text, margin in margins.items()}
    assert math.exp(sum(token.logprob for token in tokens)) == pytest.approx(
        softmax(shifted, temperature)[text_of(tokens)], rel=1e-6, abs=1e-12
    )
    for token in tokens:
        assert math.fsum(math.exp(logprob) for _, logprob in token.top_logprobs) == pytest.approx(1.0)
        assert all(math.isfinite(logprob) and logprob <= 0 for _, logprob in token.top_logprobs)
        assert dict(token.top_logprobs)[token.token_id] == token.logprob


def test_the_logprob_of_a_token_is_the_share_of_the_candidates_that_continue_with_it() -> None:
    expected = softmax(MARGINS, 1.0)
    dark = 1 - expected["red"]
    grown = expected["dark green"] + expected["dark grey"]
    logprobs_by_text = {
        text_of(tokens): [token.logprob for token in tokens]
        for tokens in (draw(MARGINS, 1.0, seed) for seed in range(200))
    }
    assert set(logprobs_by_text) == set(WORDS)
    assert logprobs_by_text["red"] == pytest.approx([math.log(expected["red"])])
    assert logprobs_by_text["dark red"] == pytest.approx([math.log(dark), math.log(expected["dark red"] / dark)])
    assert logprobs_by_text["dark grey"] == pytest.approx(
        [math.log(dark), math.log(grown / dark), math.log(expected["dark grey"] / grown)]
    )


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_at_temperature_zero_the_greatest_margin_has_probability_one(temperature: float) -> None:
    for seed in range(20):
        tokens = draw(MARGINS, temperature, seed)
        assert text_of(tokens) == "dark red"
        assert [(token.logprob, token.rank, len(token.top_logprobs)) for token in tokens] == [(0.0, 1, 1)] * 2


def test_the_first_of_equal_margins_is_taken_at_temperature_zero() -> None:
    assert text_of(draw({"dark blue": 1.0, "red": 1.0}, 0.0, seed=0)) == "dark blue"


def test_a_rank_counts_the_more_likely_tokens() -> None:
    tokens = [draw({"red": 0.0, "dark": 1.0}, 1.0, seed)[0] for seed in range(50)]
    assert {(token.token_id, token.rank) for token in tokens} == {(2, 1), (1, 2)}


def test_the_logprob_of_a_very_low_margin_is_finite() -> None:
    [token] = draw({"red": 1e9, "dark": -1e9}, 1e-5, seed=0)
    assert token.token_id == 1
    assert dict(token.top_logprobs) == pytest.approx({1: 0.0, 2: -2e14})


def test_slots_follow_one_another() -> None:
    slots = [AnswerSlot({"red": 0.0}), AnswerSlot({"dark blue": 0.0})]
    tokens = sample_slots(slots, 1.0, random.Random(0), TOKENS.__getitem__)
    assert [token.token_id for token in tokens] == [1, 2, 3]
    assert [token.logprob for token in tokens] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("margins", "complaint"),
    [
        ({}, "no candidates"),
        ({"": 0.0}, "empty text"),
        ({"dark": 0.0, "red": 0.0, "dark blue": 0.0}, "'dark blue' begins with the tokens of the candidate 'dark'"),
        ({"red": math.inf}, "not all numbers"),
        ({"red": math.nan, "dark": 0.0}, "not all numbers"),
    ],
)
def test_slots_that_cannot_be_drawn_from_are_refused(margins: dict[str, float], complaint: str) -> None:
    with pytest.raises(PolicyFault, match=complaint):
        draw(margins, 1.0, seed=0)
