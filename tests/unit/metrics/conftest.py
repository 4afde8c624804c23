"""Removes the log configuration that a run in this process leaves behind."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _reset_log_configuration() -> Iterator[None]:
    yield
    structlog.reset_defaults()
