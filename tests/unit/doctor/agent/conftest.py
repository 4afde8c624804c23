"""What the tests of doctor's plays share."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Reset the log, which a command leaves at warnings alone."""
    yield
    structlog.reset_defaults()
