"""`Program` plays a command, and scores what it did."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout import RolloutLimit, Score, Task
from rollout.environments.endpoint import Transcript
from rollout.environments.program import Program
from rollout.records.endings import RolloutStatus
from rollout.testing import Answer, EnvironmentUnusable, PlayRollout
from rollout.trainer import check
from tests.conftest import ROOT

AGENT = ["{python}", str(ROOT / "tests" / "programs" / "plain_agent.py"), "{task.question}"]
WRITE_42 = Answer(tool_calls=[("write_file", {"name": "answer.txt", "text": "42"})])
TASK = {"question": "What is 6 * 7?", "right": "42"}
THIS = "tests.unit.environments.test_program"


def right_answer(task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
    answer = work / "answer.txt"
    right = answer.is_file() and answer.read_text() == task.data["right"]
    return Score(float(right), metrics={"turns": len(transcript.turns), "exited": exit_code})


def program(code: str, **settings: Any) -> Mapping[str, Any]:
    """Return the settings of a program of a few lines."""
    return {"command": ["{python}", "-c", code], "score": f"{THIS}:always", **settings}


def always(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
    return 1.0


def error_of(played: Any) -> str:
    assert played.trajectory.finished.status is RolloutStatus.FAILED
    return str(played.trajectory.finished.error["message"])


def test_a_command_plays_and_its_work_is_scored(play_rollout: PlayRollout) -> None:
    played = play_rollout(
        Program, TASK, settings={"command": AGENT, "score": f"{THIS}:right_answer"}, answers=[WRITE_42, "It is 42."]
    )
    assert played.reward == 1.0
    assert played.trajectory.finished.metrics["turns"] == 2
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]
    assert check(played.trajectory) == []
    assert played.artifacts is not None
    assert (played.artifacts / "output.txt").read_text() == "the answer: It is 42.\n"
