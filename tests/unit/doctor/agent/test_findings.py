"""What `rollout doctor --agent` says of programs with known habits, without faults."""

import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.doctor.results import CheckStatus
from tests.unit.doctor.agent.checked import LIMITS, check


def test_a_program_that_repeats_everything_can_be_trained(tmp_path: Path) -> None:
    checked = check(tmp_path)
    assert checked.exit_code == 0
    assert list(checked.rows)[-1] == "agent"
    assert checked.says("agent") == "yes: this agent can be trained"
    assert checked.says("dialect") == "chat: 3 requests"
    assert checked.says("echo").startswith("exact; text: identical; reasoning: kept (reasoning_content); ")
    assert checked.says("bridging").startswith("2 of 2 later turns")
    assert checked.says("conversations") == "1 main"
    assert checked.says("end") == "by itself, with the reward 0 (exit_code 0)"


def test_the_script_calls_no_tool_that_may_change_something(tmp_path: Path) -> None:
    assert check(tmp_path).says("tools") == "2: weigh, delete_file; the script called weigh"


def test_arguments_that_are_written_again_are_normalised(tmp_path: Path) -> None:
    echo = check(tmp_path, "writes arguments again").says("echo")
    assert echo.startswith("normalised")
    assert "arguments: written again (escapes, key order, white space)" in echo


@pytest.mark.parametrize(
    ("habit", "finding"),
    [("drops reasoning", "reasoning: dropped"), ("moves reasoning", "reasoning: kept (thoughts)")],
)
def test_reasoning_that_does_not_come_back_is_named(tmp_path: Path, habit: str, finding: str) -> None:
    checked = check(tmp_path, habit)
    assert finding in checked.says("echo")
    assert checked.exit_code == 0


def test_arguments_with_defaults_cannot_be_trained(tmp_path: Path) -> None:
    checked = check(tmp_path, "fills in defaults")
    echo = checked.problem("echo")
    assert echo.message.startswith("foreign (tool arguments edited); ")
    assert "arguments: edited: unit added" in echo.message
    assert echo.fix == "an option of the agent that keeps the arguments of calls as they came"
    assert checked.problem("bridging").message.startswith("only 0 of 2 later turns are bridged")


def test_an_edited_text_cannot_be_trained(tmp_path: Path) -> None:
    echo = check(tmp_path, "edits text").problem("echo")
    assert "text edited" in echo.message
    assert "text: edited" in echo.message


def test_a_clock_in_the_system_message_is_shown_where_it_is(tmp_path: Path) -> None:
    prompts = check(tmp_path, "clock").problem("prompts")
    assert "an earlier message changed at turn 1: message 0 (system): '" in prompts.message
    assert "It is " in prompts.message


def test_an_example_in_the_prompt_does_no_harm(tmp_path: Path) -> None:
    checked = check(tmp_path, "example")
    assert checked.says("echo").startswith("foreign (message inserted); ")
    assert checked.says("bridging").startswith("2 of 2 later turns")
    assert checked.exit_code == 0


def test_tools_that_are_no_functions_are_named(tmp_path: Path) -> None:
    assert "left out, because they are no functions: web_search" in check(tmp_path, "web search").says("tools")


def test_a_title_is_an_auxiliary_conversation(tmp_path: Path) -> None:
    assert check(tmp_path, "title").says("conversations").startswith("1 main, 1 auxiliary; ")


def test_settings_that_do_not_count_are_named(tmp_path: Path) -> None:
    assert check(tmp_path, "sampling").says("settings") == (
        "max_tokens 4,000; engine.sampling has 512, the smaller counts; temperature: ignored (gateway.sampling: ours)"
    )


def test_a_response_format_is_refused_with_the_key_that_allows_it(tmp_path: Path) -> None:
    start = check(tmp_path, "format").problem("start")
    assert "POST /v1/chat/completions gets 400: response_format changes the distribution" in start.message
    assert start.fix == "gateway.constrained: allow, or an option of the agent that leaves this key out"


def test_a_forced_tool_is_refused(tmp_path: Path) -> None:
    start = check(tmp_path, "forced tool").problem("start")
    assert "tool_choice changes the distribution" in start.message
    assert start.fix == "an option of the agent that leaves this out"


def test_a_program_without_tools_gets_a_text(tmp_path: Path) -> None:
    checked = check(tmp_path, "no tools")
    assert checked.says("tools") == "none, so the script answered with text alone"
    assert checked.rows["echo"].status is CheckStatus.UNKNOWN
    assert checked.exit_code == 0


@pytest.mark.parametrize("habit", ["never ends", "hangs"])
def test_a_program_that_does_not_end_is_ended(tmp_path: Path, habit: str) -> None:
    limits = LIMITS if habit == "never ends" else replace(LIMITS, seconds=8.0)
    end = check(tmp_path, habit, limits=limits).problem("end")
    assert "it does not end by itself" in end.message
    assert end.message.endswith("though the policy had said that all is done")


def test_a_program_that_asks_nothing_is_shown(tmp_path: Path) -> None:
    checked = check(tmp_path, "asks nothing")
    assert list(checked.rows) == ["start", "agent"]
    assert checked.problem("start").message == (
        "the program asks for no answer; its rollout ends with the reward 0 (exit_code 0)"
    )


def test_an_environment_without_an_endpoint_is_one_clear_problem(tmp_path: Path) -> None:
    checked = check(tmp_path, environment="ChatOnly")
    assert list(checked.rows) == ["start", "agent"]
    assert checked.problem("start").message == "the environment opens no endpoint, so it plays no program"


def test_a_program_with_a_socket_of_its_own_is_seen(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gateway.sock"
        checked = check(tmp_path, environment="SocketAgent", overrides=[f"environment.socket={path}"])
        assert checked.says("dialect") == "chat: 1 request"
        assert checked.says("end") == "by itself, with the reward 0 (status 200)"
        assert not path.exists()


def test_tasks_of_another_program_are_a_bad_configuration(tmp_path: Path) -> None:
    checked = check(tmp_path, overrides=["tasks.source=queue"])
    assert checked.exit_code == 2
    assert checked.rows["agent"].message.startswith("the tasks come from another program")


def test_requests_beside_turns_are_named(tmp_path: Path) -> None:
    assert check(tmp_path, "looks at models").says("requests") == "beside turns: GET /v1/models (1)"


def test_an_address_that_is_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        start = check(tmp_path, overrides=[f"gateway.port={port}"]).problem("start")
    assert f"doctor cannot listen at http://127.0.0.1:{port} (Address already in use)" in start.message


def test_the_output_of_a_program_that_asks_nothing_is_shown_without_the_key(tmp_path: Path) -> None:
    start = check(tmp_path, "prints the key").problem("start")
    assert start.message.endswith("the end of its output: the key is a-key-of-the-gateway")


def test_an_environment_that_fails_after_its_play_cannot_be_trained(tmp_path: Path) -> None:
    checked = check(tmp_path, environment="WrongScore")
    end = checked.problem("end")
    assert end.message == "its own play failed, so it would not train: ValueError: no such score"
    assert end.fix is not None
    assert end.fix.startswith("repair run() of tests.unit.doctor.agent.small_environment:WrongScore")
    assert checked.rows["agent"].message == f"no: end: {end.message}"


def test_the_whole_error_of_an_environment_that_asked_nothing_is_the_verdict(tmp_path: Path) -> None:
    checked = check(tmp_path, environment="NoEndpoint")
    start = checked.problem("start")
    assert start.message == (
        "the program failed before its first request: ValueError: no such file; none at all. Really none"
    )
    assert checked.rows["agent"].message == f"no: start: {start.message}"


@pytest.mark.parametrize(
    ("habit", "fix"),
    [
        ("adds v1", "OPENAI_BASE_URL already ends in /v1, so the program must not add /v1 to it"),
        ("removes v1", "OPENAI_BASE_URL ends in /v1, so the program must not remove it"),
    ],
)
def test_a_wrong_address_is_refused_with_the_right_one(tmp_path: Path, habit: str, fix: str) -> None:
    start = check(tmp_path, habit).problem("start")
    assert " gets 404: The gateway has no POST /" in start.message
    assert start.fix == fix


def test_a_wrong_address_beside_turns_is_shown_with_a_fix(tmp_path: Path) -> None:
    checked = check(tmp_path, "tries v1")
    assert checked.says("requests") == "beside turns: POST /v1/v1/chat/completions (1); refused: 1"
    assert checked.rows["requests"].status is CheckStatus.UNKNOWN
    assert checked.rows["requests"].fix == "OPENAI_BASE_URL already ends in /v1, so the program must not add /v1 to it"
