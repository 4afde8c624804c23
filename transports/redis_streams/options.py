"""The options of a redis:// or rediss:// URL; reading them does not need the client library."""

from __future__ import annotations

from dataclasses import dataclass

from transports.urls import QueueOptions, parse_queue_url


@dataclass(frozen=True, slots=True)
class RedisOptions(QueueOptions):
    """The options of a redis:// or rediss:// URL."""

    stream: str = "rollout"
    """The name of the queue on its server."""
    lease_time: float = 10.0
    """Seconds without a renewal after which another consumer gets the partitions or records."""
    ca_file: str = ""
    """For rediss://: the file of the certificate authority to trust, instead of the system's."""


def parse_redis_url(url: str) -> RedisOptions:
    """Return the options of a URL. Raises QueueURLError."""
    return parse_queue_url(url, RedisOptions)[1]
