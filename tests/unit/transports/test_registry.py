"""The choice of a transport by a URL, and the URLs and options that are refused."""

from collections.abc import Sequence

import pytest

from transports import Lease, Queue, QueueURLError, UnknownTransport, open_queue, register_transport
from transports.memory import MemoryQueue
from transports.urls import parse_size


def test_the_error_for_an_unknown_scheme_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(UnknownTransport, match=r"did you mean 'memory://'.*file://"):
        open_queue("memry://tasks")
    with pytest.raises(UnknownTransport, match="has no scheme"):
        open_queue("/a/path")


@pytest.mark.parametrize("url", ["zmq://host:port", "redis://host:port/0", "zmq://[::1"])
def test_a_text_that_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(QueueURLError, match="not a URL"):
        open_queue(url)


async def test_a_program_can_register_a_transport_of_its_own() -> None:
    def mirrored(url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
        return MemoryQueue(url.replace("mirror:", "memory:"), lease=lease, consume=consume)

    register_transport("mirror", mirrored)
    register_transport("mirror", mirrored)
    async with open_queue("mirror://hall") as queue:
        assert queue.url == "memory://hall"
    with pytest.raises(QueueURLError, match="already"):
        register_transport("mirror", MemoryQueue)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("high_water=lots", "64MB"),
        ("partitions=two", "whole number"),
        ("partitions=-1", "not negative"),
        ("partitions=0", "between 1 and 4096"),
        ("partitions=1&partitions=2", "twice"),
        ("high_water=2MB&hard_limit=1MB", "below high_water"),
        ("fsnc=always", "unknown option 'fsnc'"),
        ("partitions", "not a URL"),
    ],
)
def test_a_wrong_option_is_refused_by_name(query: str, message: str) -> None:
    with pytest.raises(QueueURLError, match=message):
        open_queue(f"memory://options?{query}")


@pytest.mark.parametrize(("text", "size"), [("1500", 1500), ("2MB", 2_000_000), ("1.5KiB", 1536), ("1g", 10**9)])
def test_sizes_are_written_with_units(text: str, size: int) -> None:
    assert parse_size(text) == size
