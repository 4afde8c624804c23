"""Plays one rollout as a run does, and looks at what a trainer would read."""

import asyncio
from pathlib import Path

from rollout import Task
from rollout.testing import embedded_policy, play
from rollout.trainer import Trajectory, check

from rollout.templates.images.environment import DiscSettings, FindDisc


def play_once(directory: Path, settings: DiscSettings) -> Trajectory:
    async def run() -> Trajectory:
        task = Task(id="0", index=0, seed=7)
        script = "rollout.templates.images.policy:Eye"
        async with embedded_policy(directory, script=script) as policy:
            return await play(FindDisc(settings), task, policy)

    return asyncio.run(run())


def test_an_eye_finds_every_disc(tmp_path: Path) -> None:
    trajectory = play_once(tmp_path, DiscSettings())
    assert trajectory.reward == 1.0
    assert check(trajectory) == []  # the tokens are exactly those that the engine saw


def test_every_picture_is_recorded_once(tmp_path: Path) -> None:
    trajectory = play_once(tmp_path, DiscSettings(pictures=2))
    assert len(trajectory.images) == 2
