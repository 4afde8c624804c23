"""`file://`: the contract, whole and record by record durable."""

from pathlib import Path

import pytest

from transports.testing import QueueConformance


class TestFileConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/queue"


class TestFileConformanceWithEverySync(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/queue?fsync=always&segment_bytes=200"
