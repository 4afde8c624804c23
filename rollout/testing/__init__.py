"""Plays a rollout in a test with answers from the test, so that its messages, score and trajectory can be checked.

    played = await play(GuessNumber, answers=["50", "25", "37"])
    assert played.turns[1].new_messages[-1]["content"] == "Lower."
    assert played.reward == 1.0

Only the answers come from the test; everything else is real. The answers are rendered, tokenized and parsed, and an
embedded engine sends them over HTTP. The records go through a queue to the trainer's reader. `replay` plays a recorded
rollout again, with its recorded answers.
"""

from rollout.testing.answers import Answer, AnswerUnusable, OutOfAnswers
from rollout.testing.played import NotScored, Played, PlayedTurn
from rollout.testing.playing import PlayRollout, play
from rollout.testing.policies import embedded_policy
from rollout.testing.recorded_config import CannotReplay
from rollout.testing.replay_report import Difference, ReplayReport
from rollout.testing.replaying import replay

__all__ = [
    "Answer",
    "AnswerUnusable",
    "CannotReplay",
    "Difference",
    "NotScored",
    "OutOfAnswers",
    "PlayRollout",
    "Played",
    "PlayedTurn",
    "ReplayReport",
    "embedded_policy",
    "play",
    "replay",
]
