"""The fixture `play_rollout` for the tests of environments; pytest loads it wherever rollout is installed.

    def test_the_right_number_is_worth_1(play_rollout):
        assert play_rollout(GuessNumber, answers=["42"]).reward == 1.0

So it imports what plays only when a test uses the fixture.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rollout.testing import PlayRollout


@pytest.fixture
def play_rollout() -> "PlayRollout":
    """Play one rollout with the answers of the test, as `rollout.testing.play` does, for tests that are no coroutines.

    `play_rollout(MyEnvironment, task, settings={…}, answers=[…])` returns a `rollout.testing.Played`.
    """
    from rollout.testing.playing import play_at_once

    return play_at_once
