"""The conformance suite: the tests that every transport needs."""

from pathlib import Path

import pytest

from transports.testing import QueueConformance


class TestSqliteQueue(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"sqlite://{tmp_path}/queue.db"
