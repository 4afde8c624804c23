"""Plays one rollout as a run does, and looks at what a trainer would read."""

import asyncio
from pathlib import Path

from rollout import Task
from rollout.testing import embedded_policy, play
from rollout.trainer import Trajectory, check

from rollout.templates.chat.environment import GuessNumber, GuessSettings


def play_once(directory: Path, settings: GuessSettings) -> Trajectory:
    async def run() -> Trajectory:
        task = Task(id="0", index=0, seed=7)
        script = "rollout.templates.chat.policy:Halving"
        async with embedded_policy(directory, script=script) as policy:
            return await play(GuessNumber(settings), task, policy)

    return asyncio.run(run())


def test_halving_finds_the_number(tmp_path: Path) -> None:
    trajectory = play_once(tmp_path, GuessSettings())
    assert trajectory.reward == 1.0
    assert check(trajectory) == []  # the tokens are exactly those that the engine saw


def test_too_few_guesses_have_no_reward(tmp_path: Path) -> None:
    trajectory = play_once(tmp_path, GuessSettings(highest=1000, max_guesses=2))
    assert trajectory.reward == 0.0
    assert trajectory.metrics["guesses"] == 2
