"""Requests to send to engines, and short pauses between tries."""

import pytest

from rollout.engine.request import GenerateRequest
from tests.unit.engine.requests import make_request


@pytest.fixture
def text() -> GenerateRequest:
    """A valid request without images."""
    return make_request(())


@pytest.fixture
def pictures() -> GenerateRequest:
    """A valid request with three images; two of them are the same."""
    return make_request((b"one", b"two", b"one"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.engine.client._FIRST_RETRY_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("rollout.engine.refusals._FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("rollout.engine.refusals._MAX_WAIT_SECONDS", 0.01)
