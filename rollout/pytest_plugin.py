"""The fixture `play_rollout` for the tests of environments.

    def test_the_right_number_is_worth_1(play_rollout):
        assert play_rollout(GuessNumber, answers=["42"]).reward == 1.0

pytest loads this module wherever rollout is installed, so it imports the rest only when a test uses the fixture.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rollout.testing import PlayRollout


@pytest.fixture
def play_rollout() -> "PlayRollout":
    """Play one rollout with the answers of the test; it is `rollout.testing.play` for tests that are not coroutines.

    `play_rollout(MyEnvironment, task, settings={…}, answers=[…])` returns a `rollout.testing.Played`.
    """
    from rollout.testing.playing import play_at_once

    return play_at_once
