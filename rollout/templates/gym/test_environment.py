"""Plays the environment with fixed answers, and checks the results."""

from rollout.testing import PlayRollout

from rollout.templates.gym.environment import Lake

WAY = ["down", "down", "right", "down", "right", "right"]


def test_the_last_step_of_the_way_is_rewarded(play_rollout: PlayRollout) -> None:
    """Only the step to the goal has a reward."""
    played = play_rollout(Lake, answers=WAY)
    assert played.reward == 1.0
    assert played.turn_rewards == {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 1.0}


def test_a_wrong_word_costs_a_turn(play_rollout: PlayRollout) -> None:
    """The next message lists the actions, and the turn is counted."""
    answers = ["I would rather swim.", "north"]
    played = play_rollout(Lake, answers=answers, settings={"max_turns": 2})
    assert (played.reward, played.limit) == (0.0, "turns")
    assert "Answer with one of left" in played.messages[2]["content"]
