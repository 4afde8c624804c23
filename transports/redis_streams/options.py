"""Parses the options of a redis:// or rediss:// URL. This does not need the client library."""

from __future__ import annotations

from dataclasses import dataclass

from transports.urls import QueueOptions, parse_queue_url


@dataclass(frozen=True, slots=True)
class RedisOptions(QueueOptions):
    """The options of a redis:// or rediss:// URL."""

    stream: str = "rollout"
    """The name of the queue on the server. The names of all its keys begin with this name in braces."""
    lease_time: float = 10.0
    """Seconds without a renewal after which another consumer gets the partitions or records."""
    ca_file: str = ""
    """For rediss://: the file of the certificate authority to trust. "" for the authorities of the system."""


def parse_redis_url(url: str) -> RedisOptions:
    """Return the options from a URL. Raises QueueURLError if one of them is wrong."""
    return parse_queue_url(url, RedisOptions)[1]
