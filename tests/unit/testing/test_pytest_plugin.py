"""The fixture `play_rollout`: installed with rollout, cheap until it is used, and only for plain tests."""

import subprocess
import sys

import pytest

from rollout.testing import PlayRollout
from tests.unit.testing.games import Game


def test_the_plugin_imports_no_large_package_before_it_is_used() -> None:
    names = ("rollout.testing", "rollout.environments", "pydantic", "aiohttp", "renderers")
    code = f"import sys, rollout.pytest_plugin; print([name for name in {names} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout == "[]\n"


def test_pytest_finds_the_plugin_where_rollout_is_installed(pytestconfig: pytest.Config) -> None:
    plugin = pytestconfig.pluginmanager.get_plugin("rollout")
    assert plugin is not None
    assert plugin.__name__ == "rollout.pytest_plugin"


def test_a_plain_test_plays_with_the_fixture(play_rollout: PlayRollout) -> None:
    played = play_rollout(Game, {"question": "Go."}, answers=["moon", "sea", "sky"])
    assert played.metrics == {"turns": 3.0}


async def test_a_test_that_is_a_coroutine_must_use_play(play_rollout: PlayRollout) -> None:
    with pytest.raises(RuntimeError, match=r"write `await rollout\.testing\.play\(…\)`"):
        play_rollout(Game, answers=["moon"])
