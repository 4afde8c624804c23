"""Queues with acks and back-pressure. `open_queue(url)` opens one; all transports have the same interface."""

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, StaleLease
from transports.errors import (
    AdmissionTimeout,
    QueueClosed,
    QueueCorrupt,
    QueueError,
    QueueFull,
    QueueStorageError,
    QueueURLError,
    QueueVersionMismatch,
    RecordTooLarge,
    UnknownTransport,
)
from transports.registry import open_queue, register_transport

__all__ = [
    "AdmissionTimeout",
    "DeadLetter",
    "Delivery",
    "Frames",
    "Lease",
    "Peeked",
    "Queue",
    "QueueClosed",
    "QueueCorrupt",
    "QueueError",
    "QueueFull",
    "QueueStats",
    "QueueStorageError",
    "QueueURLError",
    "QueueVersionMismatch",
    "RecordTooLarge",
    "StaleLease",
    "UnknownTransport",
    "open_queue",
    "register_transport",
]
