"""The fixture `play_rollout`: there wherever rollout is installed, quick until it is used, and for plain tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from rollout.testing import PlayRollout
from tests.unit.testing.games import Game

TESTS = """
import sys

LOADED = [name for name in ("rollout.testing", "rollout.environments", "pydantic", "aiohttp") if name in sys.modules]


def test_nothing_heavy_was_loaded_for_the_plugin():
    assert LOADED == []


def test_the_fixture_plays(play_rollout):
    from rollout.environments.calculator import Calculator

    played = play_rollout(Calculator, {"start": 1, "chain": []}, answers=["It is 1."])
    assert played.reward == 1.0
"""


def test_a_project_gets_the_fixture_by_installing_rollout(tmp_path: Path) -> None:
    (tmp_path / "test_game.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_plain_test_plays_with_the_fixture(play_rollout: PlayRollout) -> None:
    played = play_rollout(Game, {"question": "Go."}, answers=["moon", "sea", "sky"])
    assert played.metrics == {"turns": 3.0}


async def test_a_test_that_is_a_coroutine_is_told_to_await(play_rollout: PlayRollout) -> None:
    with pytest.raises(RuntimeError, match=r"write `await rollout\.testing\.play\(…\)`"):
        play_rollout(Game, answers=["moon"])
