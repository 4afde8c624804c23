"""Durable queues with acks and back-pressure behind one contract: `open_queue(url)`."""

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
