"""The contract of a queue as a pytest class, for any transport.

    class TestCarrierPigeon(QueueConformance):
        @pytest.fixture
        def queue_url(self, tmp_path: Path) -> str:
            return f"pigeon://{tmp_path}"

`queue_url` is the URL of a queue that does not exist yet. The cases add the options that every transport understands:
partitions, high_water, high_water_records and hard_limit. They need pytest and pytest-asyncio.
"""

from transports.testing.flow import BackpressureCases
from transports.testing.handles import HandleCases
from transports.testing.leases import LeaseCases
from transports.testing.limits import LimitCases
from transports.testing.peeking import PeekCases
from transports.testing.records import RecordCases

__all__ = ["QueueConformance"]


class QueueConformance(RecordCases, LeaseCases, LimitCases, BackpressureCases, PeekCases, HandleCases):
    """A case for each statement of the contract. Subclass it, and give it a fixture `queue_url`."""
