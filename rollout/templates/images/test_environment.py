"""Plays the environment with fixed answers, and checks the results."""

from rollout import Task
from rollout.testing import PlayRollout
from rollout.trainer import check

from rollout.templates.images.environment import FindDisc


def test_right_corners_are_counted(play_rollout: PlayRollout) -> None:
    """The reward is the share of right answers."""
    answers = ["Bottom right.", "bottom right", "top right"]
    played = play_rollout(FindDisc, answers=answers)
    assert played.reward == 2 / 3
    assert check(played.trajectory) == []  # the tokens are right, too


def test_each_turn_shows_one_more_picture(play_rollout: PlayRollout) -> None:
    """The conversation grows by one picture in each turn."""
    task = Task(id="0", index=0, seed=7)
    settings = {"pictures": 2}
    played = play_rollout(FindDisc, task, settings=settings, answers=["?", "?"])
    assert [len(turn.messages) for turn in played.turns] == [1, 3]
    assert len(played.trajectory.images) == 2
