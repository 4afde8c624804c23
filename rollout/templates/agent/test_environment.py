"""Plays the environment with fixed answers, and checks the results."""

import re
from typing import Any

from rollout.testing import Answer, PlayRollout
from rollout.trainer import check

from rollout.templates.agent.environment import FindCode


def test_the_notes_have_the_codes(play_rollout: PlayRollout) -> None:
    """The results of both calls reach the model, and the trainer gets both turns."""

    def find(conversation: list[dict[str, Any]]) -> str | Answer:
        results = [m["content"] for m in conversation if m["role"] == "tool"]
        if results:
            return " and ".join(results)
        doors = re.findall(r"the (\w+) door", conversation[0]["content"])
        return Answer(tool_calls=[("read_note", {"door": door}) for door in doors])

    played = play_rollout(FindCode, answers=find)
    assert played.reward == 1.0
    assert check(played.trajectory) == []  # the tokens are right, too
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]


def test_an_agent_that_goes_on_is_stopped(play_rollout: PlayRollout) -> None:
    """After the last turn, the reward is 0."""
    settings = {"max_turns": 2}
    ask = Answer(tool_calls=[("read_note", {"door": "golden"})])
    played = play_rollout(FindCode, settings=settings, answers=[ask, ask])
    assert played.turns[1].messages[-1]["content"] == "There is no door golden."
    assert played.reward == 0.0
