"""The comparison of log-probs counts every trained token, and a loop that compares nothing is never found correct."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.tokens import ExpandedIds
from rollout.trainer import (
    Batch,
    ComparisonThresholds,
    LogprobComparison,
    TrainingSample,
    collate,
    compare_logprobs,
)

PROMPT = 2
EXACT = ComparisonThresholds(max_difference=1e-3)

Answer = list[str | None]
"""The name of the version of each sampled token; None if the engine did not report it."""


def sample_of(answers: list[Answer]) -> TrainingSample:
    """Make a sample with a prompt of two tokens before each answer."""
    names: list[str | None] = []
    turns: list[int] = []
    for turn, answer in enumerate(answers):
        names += [None] * PROMPT + answer
        turns += [-1] * PROMPT + [turn] * len(answer)
    versions = tuple(dict.fromkeys(name for name in names if name is not None))
    turn_index = np.array(turns, np.int32)
    mask = turn_index >= 0
    length = len(names)
    return TrainingSample(
        rollout="g.0",
        group="g",
        leaf=0,
        reward=1.0,
        token_ids=ExpandedIds(np.arange(length, dtype=np.int32)),
        mask=mask,
        logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        token_types=np.zeros(length, np.uint8),
        version_index=np.array([-1 if name is None else versions.index(name) for name in names], np.int32),
        versions=versions,
        turn_index=turn_index,
        turns=tuple(range(len(answers))),
        token_rewards=np.zeros(length, np.float32),
        image_directory="",
        content=np.zeros(length, np.uint8),
        placeholders=(),
        images=(),
    )


def batch_of_answers(*answers: Answer, rows: int = 0) -> Batch:
    return collate([sample_of(list(answers))] if answers else [], min_rows=rows)


def kinds(comparison: LogprobComparison, thresholds: ComparisonThresholds = EXACT) -> list[tuple[str, str]]:
    return [(finding.severity, finding.kind) for finding in comparison.findings(thresholds)]


def test_equal_log_probs_of_the_published_version_have_no_finding() -> None:
    batch = batch_of_answers(["3", "3"], ["3"])
    comparison = compare_logprobs(batch, batch.logprobs, 3)
    assert kinds(comparison) == []
    assert (comparison.trained_tokens, comparison.compared_tokens, comparison.max_difference) == (3, 3, 0.0)


@pytest.mark.parametrize("version", [2, 4])
def test_names_that_are_off_by_one_are_an_error_with_both_versions(version: int) -> None:
    batch = batch_of_answers(["3", "3"])
    found = compare_logprobs(batch, batch.logprobs, version).findings()
    assert (found[0].severity, found[0].kind) == ("error", "nothing compared")
    assert f"the trainer's version is {version}, and the 2 trained tokens are from version '3' (2)" in found[0].text


def test_a_comparison_of_nothing_has_no_difference() -> None:
    batch = batch_of_answers(["3"])
    nothing = compare_logprobs(batch, batch.logprobs, 4)
    for comparison in (nothing, LogprobComparison.merged([nothing, nothing])):
        assert math.isnan(comparison.max_difference)
        assert math.isnan(comparison.mean_difference)


def test_an_engine_that_reports_no_version_is_an_error() -> None:
    batch = batch_of_answers([None, None])
    comparison = compare_logprobs(batch, batch.logprobs, 3)
    assert kinds(comparison) == [("error", "nothing compared")]
    assert "an engine that reported no version (2)" in comparison.findings()[0].text


def test_stale_rollouts_are_accepted_where_they_are_expected() -> None:
    batch = batch_of_answers(["2", "2"])
    assert kinds(compare_logprobs(batch, batch.logprobs, 3), ComparisonThresholds(published_share=0)) == []


def test_tokens_of_a_newer_version_are_reported_even_where_stale_rollouts_are_expected() -> None:
    batch = batch_of_answers(["4", "4"])
    found = kinds(compare_logprobs(batch, batch.logprobs, 3), ComparisonThresholds(published_share=0))
    assert found == [("warning", "newer versions")]


def test_an_answer_of_two_versions_is_not_compared() -> None:
    batch = batch_of_answers(["2", "3"], ["3"])
    comparison = compare_logprobs(batch, batch.logprobs + torch.tensor([0, 0, 0, 9.0, 0, 0, 0]), 3)
    assert (comparison.compared_tokens, comparison.max_difference) == (1, 0.0)
    assert dict(comparison.tokens_by_version) == {"2": 1, "3": 2}
    assert kinds(comparison)[0] == ("warning", "published share")


def test_the_number_at_the_end_of_a_name_is_the_version() -> None:
    batch = batch_of_answers(["weights/v0003"])
    assert compare_logprobs(batch, batch.logprobs, 3).compared_tokens == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["trainer", "engine"])
def test_a_log_prob_that_is_not_finite_is_an_error(value: float, side: str) -> None:
    batch = batch_of_answers(["3", "3"])
    wrong = batch.logprobs.clone()
    wrong[0, PROMPT] = value
    comparison = (
        compare_logprobs(batch, wrong, 3)
        if side == "trainer"
        else compare_logprobs(replace(batch, logprobs=wrong), batch.logprobs, 3)
    )
    assert kinds(comparison) == [("error", "invalid")]
    assert comparison.max_difference == 0.0


def test_log_probs_of_tokens_that_do_not_train_are_not_looked_at() -> None:
    batch = batch_of_answers(["3"])
    logprobs = torch.where(batch.mask, batch.logprobs, torch.nan)
    assert kinds(compare_logprobs(batch, logprobs, 3)) == []


def test_a_difference_above_a_threshold_is_an_error() -> None:
    batch = batch_of_answers(["3", "3", "3", "3"])
    shifted = batch.logprobs.clone()
    shifted[0, PROMPT] += 0.1
    comparison = compare_logprobs(batch, shifted, 3)
    assert comparison.max_difference == pytest.approx(0.1)
    assert comparison.mean_difference == pytest.approx(0.025)
    assert kinds(comparison) == [("error", "max difference")]
    assert kinds(comparison, ComparisonThresholds()) == []
    assert kinds(comparison, ComparisonThresholds(mean_difference=0.01)) == [("error", "mean difference")]


def test_a_ratio_outside_the_clip_range_is_counted_for_stale_tokens_too() -> None:
    batch = batch_of_answers(["2"], ["3"])
    comparison = compare_logprobs(batch, batch.logprobs + torch.tensor([0, 0, 0.3, 0, 0, 0]), 3)
    assert (comparison.clipped_tokens, comparison.clipped_share) == (1, 0.5)
    assert ("warning", "clipped share") in kinds(comparison)
    assert compare_logprobs(batch, batch.logprobs + 0.3, 3, clip=0.4).clipped_tokens == 0


def test_an_extreme_ratio_does_not_overflow() -> None:
    batch = batch_of_answers(["3"])
    comparison = compare_logprobs(batch, batch.logprobs + 1e4, 3)
    assert (comparison.clipped_tokens, comparison.invalid_tokens) == (1, 0)


def test_a_vector_of_the_trained_tokens_gives_the_same_comparison() -> None:
    batch = batch_of_answers(["3", "3"], ["2"])
    logprobs = batch.logprobs + 0.1
    assert compare_logprobs(batch, logprobs[batch.mask], 3) == compare_logprobs(batch, logprobs, 3)


def test_log_probs_of_another_shape_are_refused() -> None:
    batch = batch_of_answers(["3", "3"])
    with pytest.raises(ValueError, match=r"the shape \(3,\); expected \(1, 4\).* or \(2,\)"):
        compare_logprobs(batch, torch.zeros(3), 3)


def test_a_rank_with_only_padding_has_no_finding_and_changes_no_sum() -> None:
    padding = batch_of_answers(rows=2)
    empty = compare_logprobs(padding, padding.logprobs, 3)
    assert kinds(empty) == []
    batch = batch_of_answers(["3", "2"])
    other = compare_logprobs(batch, batch.logprobs, 3)
    assert LogprobComparison.merged([empty, other]) == other


VERSIONS = st.sampled_from(["2", "3", None])
ANSWERS = st.lists(st.lists(VERSIONS, min_size=1, max_size=3), min_size=1, max_size=3)


@given(st.lists(ANSWERS, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_merged_comparisons_of_ranks_equal_the_comparison_of_their_whole_batch(
    samples: list[list[Answer]], seed: int
) -> None:
    shift = torch.rand(len(samples), 100, generator=torch.Generator().manual_seed(seed))
    parts = [collate([sample_of(answers)]) for answers in samples]
    comparisons = [
        compare_logprobs(part, part.logprobs + shift[at, : part.mask.shape[1]], 3) for at, part in enumerate(parts)
    ]
    whole = collate([sample_of(answers) for answers in samples])
    expected = compare_logprobs(whole, whole.logprobs + shift[:, : whole.mask.shape[1]], 3)
    merged = LogprobComparison.merged(comparisons)
    assert replace(merged, total_difference=0.0) == replace(expected, total_difference=0.0)
    assert merged.total_difference == pytest.approx(expected.total_difference)


def test_a_comparison_can_be_sent_to_another_rank() -> None:
    batch = batch_of_answers(["3"], ["2"])
    comparison = compare_logprobs(batch, batch.logprobs, 3)
    assert pickle.loads(pickle.dumps(comparison)) == comparison


def test_comparisons_of_different_versions_are_not_merged() -> None:
    batch = batch_of_answers(["3"])
    with pytest.raises(ValueError, match=r"version 2 with clip 0\.2, version 3 with clip 0\.2"):
        LogprobComparison.merged([compare_logprobs(batch, batch.logprobs, version) for version in (2, 3)])


def test_no_comparison_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="found: none"):
        LogprobComparison.merged([])
