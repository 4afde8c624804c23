"""How prompts were made: the line of summaries, and the report."""

import pytest

from rollout.records.kinds import PromptSource
from rollout.records.prompt_counts import describe_prompt, report_prompts, summarize_prompts


def test_the_line_has_the_share_of_bridged_later_turns_and_the_reasons_of_the_others() -> None:
    counts = {"first": 9, "bridge": 18, "end_token": 3, "earlier_text": 1024}
    assert summarize_prompts(counts) == (
        "1.8 % of 1,045 later turns bridged (rendered whole: earlier text changed 1,024, other end token 3)"
    )


def test_first_turns_lower_no_share_and_are_no_reason() -> None:
    assert summarize_prompts({"first": 64, "bridge": 256}) == "100 % of 256 later turns bridged"
    assert summarize_prompts({"first": 1, "bridge": 1}) == "100 % of 1 later turn bridged"


@pytest.mark.parametrize("counts", [{}, {"first": 7}])
def test_a_run_of_single_turns_has_no_share(counts: dict[str, int]) -> None:
    assert summarize_prompts(counts) == "no later turns"


def test_every_source_of_a_later_turn_is_counted() -> None:
    report = report_prompts(dict.fromkeys(PromptSource, 1))
    assert (report["first"], report["bridged"]) == (1, 1)
    assert set(report["rendered"]) == {*PromptSource} - {PromptSource.FIRST, PromptSource.BRIDGE}


def test_a_prompt_is_described_with_its_reason() -> None:
    assert describe_prompt(PromptSource.BRIDGE) == "prompt bridged"
    assert describe_prompt(PromptSource.EARLIER_TEXT) == "prompt rendered: earlier text changed"
