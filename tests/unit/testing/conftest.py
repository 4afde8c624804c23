"""A recorded run to replay, and short time limits."""

import asyncio
from pathlib import Path

import pytest

from rollout.worker import closing, containment, leaving, running
from tests.unit.testing import games
from tests.unit.testing.recorded import WORDS, record


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a game of three turns."""
    directory = tmp_path_factory.mktemp("run")
    asyncio.run(record(directory, games.Game(games.GameSettings()), WORDS))
    return directory


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_CLEANUP_TIMEOUT", 0.05)
    monkeypatch.setattr(closing, "_CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr(closing, "_CANCELLED_CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr(leaving, "_LEAVING_TIMEOUT", 0.05)
    monkeypatch.setattr(containment, "_CHECK_INTERVAL", 0.02)
