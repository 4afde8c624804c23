"""The counts of the gateway: their sum, their report, and the line of summaries."""

from collections import Counter

import pytest

from rollout.records.gateway_counts import (
    add_gateway_counts,
    add_ignored_tool,
    foreign_count,
    report_gateway,
    summarize_gateway,
)

MANY = {
    "turns": 1250,
    "first": 10,
    "bridged": 1230,
    "exact": 1180,
    "normalised": 50,
    "foreign": 10,
    foreign_count("message inserted"): 2,
    foreign_count("tool arguments edited"): 8,
}


def test_the_line_has_turns_the_share_of_bridged_ones_and_echoes_with_reasons() -> None:
    assert summarize_gateway(MANY) == (
        "1,250 turns, 99.1 % bridged; echoes: 1,180 exact, 50 normalised, 10 foreign (tool arguments edited 8, "
        "message inserted 2)"
    )


def test_first_turns_do_not_lower_the_share() -> None:
    assert summarize_gateway({"turns": 9, "first": 5, "bridged": 4, "exact": 4}) == (
        "9 turns, 100 % bridged; echoes: 4 exact"
    )


def test_what_did_not_happen_is_left_out() -> None:
    assert summarize_gateway({"turns": 1, "first": 1}) == "1 turn"
    assert summarize_gateway({"turns": 2, "first": 2, "exact": 0, "retries": 0}) == "2 turns"


def test_troubles_are_at_the_end() -> None:
    counts = {"turns": 3, "first": 3, "retries": 1200, "refusals": 2, "unreceived": 1, "ignored tools: web_search": 4}
    assert summarize_gateway(counts) == "3 turns; 1,200 repeated; 2 refused; 1 not received; 4 tools left out"


def test_a_program_whose_requests_were_all_refused_is_shown() -> None:
    assert summarize_gateway({"refusals": 5}) == "0 turns; 5 refused"


def test_a_program_with_a_wrong_address_is_shown() -> None:
    counts = {"unknown paths": 4, "idle endpoints": 4}
    assert summarize_gateway(counts) == "0 turns; 4 to unknown paths; 4 endpoints without a turn"


@pytest.mark.parametrize("counts", [{}, {"turns": 0}])
def test_without_programs_there_is_neither_line_nor_report(counts: dict[str, int]) -> None:
    assert summarize_gateway(counts) is None
    assert report_gateway(counts) is None


@pytest.mark.parametrize(
    ("bridged", "share"), [(0, "0 %"), (1, "0.1 %"), (5000, "50 %"), (9999, "99.9 %"), (10_000, "100 %")]
)
def test_only_all_turns_are_100_percent_and_only_none_are_0(bridged: int, share: str) -> None:
    assert summarize_gateway({"turns": 10_000, "bridged": bridged}) == f"10,000 turns, {share} bridged"


def test_the_report_has_an_object_for_each_kind_of_count() -> None:
    counts = {**MANY, "retries": 3, "refusals": 1, "unreceived": 2, "idle endpoints": 4, "ignored tools: web_search": 7}
    counts["unknown paths"] = 5
    assert report_gateway(counts) == {
        "turns": 1250,
        "first": 10,
        "bridged": 1230,
        "echoes": {"exact": 1180, "normalised": 50, "foreign": 10},
        "foreign_reasons": {"tool arguments edited": 8, "message inserted": 2},
        "retries": 3,
        "refusals": 1,
        "unknown_paths": 5,
        "unreceived": 2,
        "idle_endpoints": 4,
        "ignored_tools": {"web_search": 7},
    }


def test_the_counts_of_rollouts_are_added() -> None:
    totals: Counter[str] = Counter()
    for _ in range(2):
        add_gateway_counts(totals, {"turns": 2, "foreign: message inserted": 1, "ignored tools: web_search": 3})
    assert totals == {"turns": 4, "foreign: message inserted": 2, "ignored tools: web_search": 6}


def test_a_program_that_makes_up_types_of_tools_does_not_fill_the_memory() -> None:
    counts: Counter[str] = Counter()
    for number in range(1000):
        add_ignored_tool(counts, f"{'x' * 10_000} {number}" if number % 2 else f"{number} {'x' * 10_000}")
    add_ignored_tool(counts, "late")
    assert len(counts) <= 51
    assert sum(counts.values()) == 1001
    assert sum(map(len, counts)) < 51 * 100
    totals: Counter[str] = Counter()
    for number in range(100):
        add_gateway_counts(totals, {f"ignored tools: {number} {index}": 1 for index in range(50)})
    assert len(totals) <= 51
    assert sum(totals.values()) == 5000


def test_endpoints_that_no_program_used_are_in_the_line() -> None:
    assert summarize_gateway({"idle endpoints": 2}) == "0 turns; 2 endpoints without a turn"
