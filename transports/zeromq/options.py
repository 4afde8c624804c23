"""Parses the address and the options of a zmq:// URL. This does not need the client library."""

from __future__ import annotations

from dataclasses import dataclass

from transports.errors import QueueURLError
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, parse_queue_url


@dataclass(frozen=True, slots=True)
class ZmqOptions(QueueOptions):
    """The options of a zmq:// URL."""

    serve: bool = True
    """Whether this handle may serve the hub. Use false for workers that start before the trainer, or end after it."""
    lease_time: float = 10.0
    """Seconds without a heartbeat after which another consumer gets the partitions or records."""
    certificate: str = ""
    """The path of a CURVE certificate, or "". With it, messages are encrypted, and the hub proves its identity."""


def parse_zmq_url(url: str) -> tuple[str, int, ZmqOptions]:
    """Return the host, the port and the options from a URL. Raises QueueURLError if the URL is wrong."""
    parts, options = parse_queue_url(url, ZmqOptions)
    if parts.hostname is None or parts.port is None or parts.path not in ("", "/"):
        raise QueueURLError(f"{hide_passwords(url)}: expected a host and a port, as in zmq://10.0.0.5:5555")
    return parts.hostname, parts.port, options
