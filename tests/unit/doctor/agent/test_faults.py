"""What `rollout doctor --agent` says of programs that get errors, or lose their connections."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.doctor.agent.faults import Fault
from rollout.doctor.results import CheckStatus
from tests.unit.doctor.agent.checked import LIMITS, check


def test_a_program_that_ends_at_400_can_be_trained(tmp_path: Path) -> None:
    checked = check(tmp_path, faults=[Fault.REFUSED])
    assert checked.says("at 400") == "asks no more; it ends with the reward 0 (exit_code 1)"
    assert checked.exit_code == 0


def test_a_loop_at_400_cannot_be_trained(tmp_path: Path) -> None:
    loop = check(tmp_path, "loop at 400", faults=[Fault.REFUSED]).problem("at 400")
    assert re.match(r"it asks again without end: \d+ times in ", loop.message)
    assert loop.fix == "an option of the agent that limits how often it asks again"


def test_a_program_that_compacts_once_is_shown(tmp_path: Path) -> None:
    overflow = check(tmp_path, "compacts", faults=[Fault.OVERFLOW]).says("at overflow")
    assert overflow.startswith("compacts: asks once more in ")


def test_a_program_that_compacts_in_a_loop_can_still_be_trained(tmp_path: Path) -> None:
    checked = check(tmp_path, "compacts", "loop at 400", faults=[Fault.OVERFLOW])
    assert checked.rows["at overflow"].status is CheckStatus.UNKNOWN
    assert re.fullmatch(
        r"it compacts without end: \d+ times in \d+ s; harmless here: instead of this error, the gateway gives a last "
        "answer that asks the program to stop",
        checked.says("at overflow"),
    )
    assert checked.exit_code == 0


@pytest.mark.parametrize(("fault", "subject"), [(Fault.DROPPED, "at a drop"), (Fault.CUT, "at a cut")])
def test_a_program_that_asks_again_with_the_same_body_gets_the_same_turn(
    tmp_path: Path, fault: Fault, subject: str
) -> None:
    text = check(tmp_path, "retries", faults=[fault]).says(subject)
    assert "with the same body, so it gets the same turn; it ends with the reward 0 (exit_code 0)" in text


def test_a_program_that_asks_again_with_another_body_is_shown(tmp_path: Path) -> None:
    text = check(tmp_path, "retries", "new body at retries", faults=[Fault.DROPPED]).says("at a drop")
    assert "with another body, so it gets a new turn" in text


def test_a_program_that_ends_at_a_lost_connection_is_shown_with_a_fix(tmp_path: Path) -> None:
    row = check(tmp_path, faults=[Fault.DROPPED]).rows["at a drop"]
    assert (row.status, row.message) == (
        CheckStatus.UNKNOWN,
        "asks no more; it ends with the reward 0 (exit_code 1)",
    )
    assert row.fix is not None
    assert row.fix.startswith("in your program, send the same body again after a lost connection (")


def test_a_program_that_waits_long_before_it_asks_again_can_be_trained(tmp_path: Path) -> None:
    limits = replace(LIMITS, seconds_after_fault=6.0)
    checked = check(tmp_path, "loop at 400", "waits", faults=[Fault.REFUSED], limits=limits)
    assert checked.says("at 400").startswith("it asks again with long pauses: ")
    assert checked.exit_code == 0


def test_a_title_that_only_some_plays_ask_for_does_not_hide_that_their_prompts_are_the_same(tmp_path: Path) -> None:
    checked = check(tmp_path, faults=[Fault.REFUSED], environment="SometimesTitle")
    assert checked.says("conversations").startswith("1 main, 1 auxiliary; ")
    assert checked.says("group") == "rollouts of one task begin with the same prompt"


def test_prompts_that_differ_between_plays_are_shown(tmp_path: Path) -> None:
    group = check(tmp_path, "clock", faults=[Fault.REFUSED]).says("group")
    assert "rollouts of one task begin with different prompts: message 0 (system): '" in group
