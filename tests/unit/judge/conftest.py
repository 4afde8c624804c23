"""Judges are asked again at once."""

import pytest


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.judge.client._FIRST_PAUSE_SECONDS", 0.0)
