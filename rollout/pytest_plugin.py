"""The fixture `play_rollout` for the tests of environments.

    def test_the_right_number_is_worth_1(play_rollout):
        assert play_rollout(GuessNumber, answers=["42"]).reward == 1.0

pytest loads this module in every project with rollout installed. So the fixture imports the rest only when a test
uses it.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rollout.testing import PlayRollout


@pytest.fixture
def play_rollout() -> "PlayRollout":
    """Return a function that plays one rollout with the answers of the test.

    `play_rollout(MyEnvironment, task, settings={…}, answers=[…])` returns a `rollout.testing.Played`. A test that is a
    coroutine calls `await rollout.testing.play(…)` instead.
    """
    from rollout.testing.playing import play_at_once

    return play_at_once
