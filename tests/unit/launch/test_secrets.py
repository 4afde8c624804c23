"""A launch does not show the password of a queue: neither in command lines nor in what it prints."""

from pathlib import Path

import pytest

from rollout.launch.launch import _worker_command, _worker_instructions
from rollout.launch.state import LaunchState
from rollout.launch.waiting import WaitWatcher
from rollout.worker.link import decode_instructions, encode_instructions
from tests.unit.launch.states import prepare_launch

URL = "redis://me:s3cret@10.0.0.5/0"


@pytest.fixture
def state(repository: Path, tmp_path: Path) -> LaunchState:
    return prepare_launch(repository, tmp_path, f"queue.url={URL}", workers=1)


def test_overrides_reach_a_worker_over_its_link_and_not_on_its_command_line(state: LaunchState) -> None:
    launch_config = state.environments[0].launch_config
    command = _worker_command(launch_config, state.directory, "color_codeword-0")
    assert "s3cret" not in " ".join(command)
    assert "--set" not in command
    sent = _worker_instructions(state, "color_codeword")
    assert sent.overrides == launch_config.overrides
    assert decode_instructions(encode_instructions(sent)) == sent


def test_a_command_that_a_launch_suggests_has_no_password(state: LaunchState) -> None:
    command = WaitWatcher(state.environments[0], state)._command("worker")
    assert "--set queue.url=redis://me:***@10.0.0.5/0" in command.replace("'", "")
