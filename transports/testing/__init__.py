"""Tests of the contract of a queue, as a pytest class for any transport.

    class TestCarrierPigeon(QueueConformance):
        @pytest.fixture
        def queue_url(self, tmp_path: Path) -> str:
            return f"pigeon://{tmp_path}"

`queue_url` is the URL of a queue that does not exist yet. The tests add options to this URL that every transport must
understand: partitions, high_water, high_water_records and hard_limit. The tests need pytest and pytest-asyncio.
"""

from transports.testing.flow import BackpressureCases
from transports.testing.handles import HandleCases
from transports.testing.leases import LeaseCases
from transports.testing.limits import LimitCases
from transports.testing.peeking import PeekCases
from transports.testing.records import RecordCases

__all__ = ["QueueConformance"]


class QueueConformance(RecordCases, LeaseCases, LimitCases, BackpressureCases, PeekCases, HandleCases):
    """Has a test for each statement of the contract. To use it, write a subclass with a fixture `queue_url`."""
