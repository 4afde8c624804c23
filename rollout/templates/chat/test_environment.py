"""Plays the environment with fixed answers, and checks the results."""

from rollout.testing import PlayRollout
from rollout.trainer import check

from rollout.templates.chat.environment import GuessNumber


def test_hints_lead_to_the_number(play_rollout: PlayRollout) -> None:
    """Each hint says the direction, and the right number gets the reward."""
    settings = {"highest": 4}
    played = play_rollout(GuessNumber, settings=settings, answers=["1", "Is it 4?"])
    contents = [message["content"] for message in played.messages]
    assert contents == ["Guess my number, from 1 to 4.", "1", "Higher.", "Is it 4?"]
    assert played.reward == 1.0
    assert check(played.trajectory) == []  # the tokens are right, too


def test_too_few_guesses_have_no_reward(play_rollout: PlayRollout) -> None:
    """If no guess is right, the reward is 0."""
    settings = {"max_guesses": 2}
    played = play_rollout(GuessNumber, settings=settings, answers=["What?", "0"])
    assert played.messages[-2]["content"] == "Say a number."
    assert played.reward == 0.0
    assert played.metrics == {"guesses": 2}
