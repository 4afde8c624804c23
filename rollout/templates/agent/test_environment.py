"""Plays the program with fixed answers, and checks the results."""

from pathlib import Path
from typing import Any

import yaml
from rollout.environments.program import Program
from rollout.testing import Answer, PlayRollout
from rollout.trainer import check

CONFIG = Path(__file__).with_name("rollout.templates.agent.yaml")
NOTES = "red door: 123\nblue door: 456\n"
TASK = {"question": "Which codes?", "notes": NOTES, "codes": ["123", "456"]}


def settings() -> dict[str, Any]:
    """Return the section `environment` of the YAML."""
    section: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["environment"]
    del section["class"]
    return {**section, "config_dir": str(CONFIG.parent)}


def test_the_program_reads_the_notes(play_rollout: PlayRollout) -> None:
    """The notes reach the model, and the trainer gets both turns."""
    read = Answer(tool_calls=[("read_file", {"name": "notes.txt"})])
    done = "123 and 456"
    played = play_rollout(Program, TASK, settings=settings(), answers=[read, done])
    assert played.turns[1].messages[-1]["content"] == NOTES
    assert played.reward == 1.0
    assert check(played.trajectory) == []  # the tokens are right, too
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]


def test_a_code_that_is_missing_is_worth_half(play_rollout: PlayRollout) -> None:
    """The reward is the share of the right codes."""
    played = play_rollout(Program, TASK, settings=settings(), answers=["123"])
    assert played.reward == 0.5
