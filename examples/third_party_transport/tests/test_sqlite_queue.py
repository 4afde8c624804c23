"""Runs the conformance suite, which every transport must pass."""

from pathlib import Path

import pytest

from transports.testing import QueueConformance


class TestSqliteQueue(QueueConformance):
    """The conformance suite with SQLite."""

    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        """Return the URL of a new queue."""
        return f"sqlite://{tmp_path}/queue.db"
