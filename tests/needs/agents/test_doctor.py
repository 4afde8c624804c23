"""What `rollout doctor --agent` finds out about real clients, without knowing them."""

import os
import re
import sys
from pathlib import Path

import pytest

from rollout.config.load import load_config
from rollout.doctor.agent.checking import check_agent
from rollout.doctor.agent.faults import Fault
from rollout.doctor.agent.playing import PlayLimits
from rollout.doctor.results import CheckResult, CheckStatus
from tests.conftest import ROOT

LIMITS = PlayLimits(seconds=600.0, seconds_after_fault=600.0, requests_after_fault=12)
"""No client is ended because the machine is slow."""
ALL_SIZES = os.environ.get("ROLLOUT_TESTS") == "full"


def check(tmp_path: Path, client: str, faults: list[Fault]) -> dict[str, CheckResult]:
    """Check a client, and return the rows by their subjects."""
    path = tmp_path / "client.yaml"
    path.write_text(
        f"environment: {{class: 'tests.needs.agents.client_environment:AnyAnswer', client: {client}}}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    results, exit_code = check_agent(load_config(path), lambda _: None, LIMITS, faults)
    rows = {result.subject.removeprefix("agent "): result for result in results}
    assert rows["agent"].message == "yes: this agent can be trained", results
    assert exit_code == 0
    return rows


def messages_of(rows: dict[str, CheckResult], *subjects: str) -> list[str]:
    """Return the messages of some rows."""
    return [rows[subject].message for subject in subjects]


def test_the_sdk_of_openai_repeats_everything_and_asks_again(tmp_path: Path) -> None:
    rows = check(tmp_path, "openai_chat", [Fault.REFUSED, Fault.DROPPED])
    assert messages_of(rows, "dialect", "echo", "bridging") == [
        "chat: 3 requests",
        "exact; text: identical; reasoning: kept (reasoning_content); arguments: identical; ids: kept; "
        "content: null beside calls without a text",
        "2 of 2 later turns: sampled tokens are kept",
    ]
    assert rows["at 400"].message.startswith("asks no more; ")
    assert "with the same body, so it gets the same turn" in rows["at a drop"].message


def test_langgraph_drops_the_reasoning_and_writes_arguments_again(tmp_path: Path) -> None:
    rows = check(tmp_path, "langgraph_chat", [])
    assert rows["echo"].message.startswith(
        "normalised; text: identical; reasoning: dropped; arguments: written again (white space); ids: kept"
    )


def test_the_sdk_of_anthropic_sends_objects(tmp_path: Path) -> None:
    rows = check(tmp_path, "anthropic_messages_streamed", [])
    assert messages_of(rows, "dialect", "echo") == [
        "messages, streamed: 3 requests",
        "exact; text: identical; reasoning: kept (a thinking block with its signature); arguments: an object, the "
        "same keys; ids: kept",
    ]


def test_codex_keeps_its_items_and_has_the_date_in_its_prompt(tmp_path: Path) -> None:
    rows = check(tmp_path, "codex", [Fault.REFUSED, Fault.DROPPED, Fault.CUT])
    assert messages_of(rows, "dialect", "echo") == [
        "responses, streamed: 3 requests",
        "exact; text: identical; reasoning: kept (summary of a reasoning item); arguments: identical; ids: kept",
    ]
    assert "message 1 (user) has the date" in rows["prompts"].message
    assert rows["at 400"].message.startswith("asks no more; ")
    assert "with the same body, so it gets the same turn" in rows["at a drop"].message
    assert " with the same " in rows["at a cut"].message  # its metadata are in a random order


def test_opencode_asks_for_a_title_and_compacts_in_a_loop(tmp_path: Path) -> None:
    rows = check(tmp_path, "opencode", [Fault.REFUSED, Fault.OVERFLOW])
    assert rows["dialect"].message == "chat, streamed: 4 requests"
    assert rows["conversations"].message.startswith("1 main, 1 auxiliary; ")
    assert 'content: "" beside calls without a text' in rows["echo"].message
    assert rows["at 400"].message.startswith("asks no more; ")
    assert rows["at overflow"].status is CheckStatus.UNKNOWN
    assert rows["at overflow"].message.startswith("it compacts without end: ")


def test_mini_swe_agent_ends_by_the_command_in_its_prompt(tmp_path: Path) -> None:
    faults = [Fault.REFUSED, Fault.OVERFLOW] if ALL_SIZES else []
    config = load_config(
        ROOT / "configs" / "mini_swe_agent.yaml", [f"environment.executable={Path(sys.executable).with_name('mini')}"]
    )
    results, _ = check_agent(config, lambda _: None, LIMITS, faults)
    rows = {result.subject.removeprefix("agent "): result for result in results}
    assert rows["tools"].message == "1: bash; the script called bash"
    assert rows["end"].message.startswith("by itself, with the reward 0 (exit_code 0, ")
    assert rows["bridging"].message == "4 of 4 later turns: sampled tokens are kept"
    if faults:
        assert re.match(r"asks 2 times more in \d+ s; it ends with failed: ProgramFailed: ", rows["at 400"].message)
        assert rows["at overflow"].message.startswith("asks no more; it ends with failed: ProgramFailed: ")


@pytest.mark.skipif(not ALL_SIZES, reason="takes minutes on two cores; ROLLOUT_TESTS=full runs it")
@pytest.mark.parametrize(
    ("client", "finding"),
    [
        ("agents_sdk_chat", "reasoning: dropped"),
        ("agents_sdk_responses", "reasoning: kept (summary of a reasoning item)"),
        ("openai_responses", "reasoning: kept (summary of a reasoning item)"),
        ("pydantic_ai_chat", "reasoning: kept (reasoning_content)"),
        ("litellm_chat", "reasoning: kept (reasoning_content)"),
    ],
)
def test_the_reasoning_of_other_clients_is_found(tmp_path: Path, client: str, finding: str) -> None:
    assert finding in check(tmp_path, client, [])["echo"].message
