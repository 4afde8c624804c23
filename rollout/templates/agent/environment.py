"""The score of what the program did."""

from pathlib import Path

from rollout import Score, Task
from rollout.environments.endpoint import Transcript


def score(task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
    """Return the score of one rollout. The program has ended.

    `work` is the directory that the program left, and `transcript` is what it said with
    the model.
    """
    answer = transcript.text  # the last answer of the model
    right = [code in answer for code in task.data["codes"]]
    turns = len(transcript.turns)
    return Score(sum(right) / len(right), metrics={"turns": turns})
