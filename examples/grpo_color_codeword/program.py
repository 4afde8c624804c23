"""The codeword of colours, played by an agent program in place of the environment.

The tasks are those of `environment.py`. Their data also has the pictures, which the program reads.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from examples.grpo_color_codeword.environment import CodewordTasks, draw, draw_codeword, score_answers
from rollout import Score, Task, TaskSettings
from rollout.environments.endpoint import Transcript
from rollout.environments.program import Program
from rollout.images.sources import encode_data_uri, encode_pillow_image


class CodewordProgram(Program):
    """Gives each program the pictures of its task."""

    Tasks: ClassVar[type[TaskSettings]] = CodewordTasks

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """See `Environment.tasks`."""
        assert isinstance(tasks, CodewordTasks)
        for task in super().tasks(tasks):
            codeword = draw_codeword(task, tasks.pictures)
            drawn = [draw(color, seed=(task.seed, turn)) for turn, color in enumerate(codeword)]
            # The bytes of an image are part of the seed of an answer, so they are those that the environment sends.
            pictures = [encode_data_uri("image/png", encode_pillow_image(picture)) for picture in drawn]
            yield replace(task, data={"codeword": codeword, "pictures": pictures})


def score(task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
    """Score the answers of a program like those of the environment."""
    return score_answers(task.data["codeword"], [turn.text for turn in transcript.turns], ask="along")
