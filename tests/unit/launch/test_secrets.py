"""Where a password of a queue must not be seen while a launch runs: command lines, and what it says."""

from pathlib import Path

import pytest

from rollout.launch.launch import _worker_command, _worker_instructions
from rollout.launch.local import LocalPlace
from rollout.launch.state import LaunchState
from rollout.launch.waiting import WaitWatcher
from rollout.rundir.manifest import create_run
from rollout.worker.link import decode_instructions, encode_instructions

URL = "redis://me:s3cret@10.0.0.5/0"


@pytest.fixture
def state(repository: Path, tmp_path: Path) -> LaunchState:
    overrides = (f"run.directory={tmp_path}", f"queue.url={URL}")
    directory, launch_configs = create_run([repository / "configs" / "color_codeword.yaml"], overrides)
    return LaunchState(directory, launch_configs, 1, LocalPlace(), is_resumed=False)


def test_a_worker_gets_the_overrides_over_its_link_and_not_on_its_command_line(state: LaunchState) -> None:
    launch_config = state.environments[0].launch_config
    command = _worker_command(launch_config, state.directory, "color_codeword-0")
    assert "s3cret" not in " ".join(command)
    assert "--set" not in command
    sent = _worker_instructions(state, "color_codeword")
    assert sent.overrides == launch_config.overrides
    assert decode_instructions(encode_instructions(sent)) == sent


def test_a_command_that_a_launch_proposes_has_no_password(state: LaunchState) -> None:
    command = WaitWatcher(state.environments[0], state)._command("worker")
    assert "--set queue.url=redis://me:***@10.0.0.5/0" in command.replace("'", "")
