"""Finds the transport for a URL: a built-in one, one that a program registered, or one of an installed package.

The module of a transport is imported when a URL first needs it. So only the client libraries of used queues must be
installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, cast

from transports.base import Lease, Queue
from transports.errors import QueueURLError, UnknownTransport
from transports.redaction import hide_passwords
from transports.urls import split_url

ENTRY_POINT_GROUP = "rollout.transports"

_BUILT_IN = {
    "memory": "transports.memory:MemoryQueue",
    "file": "transports.files.queue:open_file_queue",
    "zmq": "transports.zeromq.queue:ZmqQueue",
    "redis": "transports.redis_streams.queue:RedisQueue",
    "rediss": "transports.redis_streams.queue:RedisQueue",
}


class TransportFactory(Protocol):
    """Makes a handle. It does not connect: the first operation of the handle does."""

    def __call__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
        """Return a handle. See `open_queue`."""


_registered: dict[str, TransportFactory] = {}


def register_transport(scheme: str, factory: TransportFactory) -> None:
    """Let `open_queue` use `factory` for a scheme in this process. Packages declare an entry point instead."""
    if _registered.setdefault(scheme, factory) is not factory:
        raise QueueURLError(f"another transport is already registered for {scheme}://")


def open_queue(url: str, *, lease: Lease = "partition", consume: Sequence[int] | None = None) -> Queue:
    """Return a handle on a queue, for `async with`.

    Args:
        url: the URL of the queue.
        lease: what a consumer leases: whole partitions (trajectories), or single records (tasks). All consumers of a
            queue must use the same value.
        consume: the partitions that this consumer may lease; None: any that are free.

    Raises:
        QueueURLError: the URL or an option is wrong.
        UnknownTransport: there is no transport for the scheme.
    """
    return _find_factory(url)(url, lease=lease, consume=consume)


def _find_factory(url: str) -> TransportFactory:
    scheme = split_url(url).scheme
    if scheme in _registered:
        return _registered[scheme]
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        try:
            return cast(TransportFactory, getattr(import_module(module), name))
        except ModuleNotFoundError as error:
            raise UnknownTransport(
                f"{hide_passwords(url)}: {scheme}:// needs the package {error.name!r}, which is not installed; run "
                f"pip install 'rollout-rl[{'zmq' if error.name == 'zmq' else 'redis'}]'"
            ) from error
    installed = entry_points(group=ENTRY_POINT_GROUP)
    for entry in installed:
        if entry.name == scheme:
            return cast(TransportFactory, entry.load())
    schemes = sorted({*_registered, *_BUILT_IN, *(entry.name for entry in installed)})
    matches = difflib.get_close_matches(scheme, schemes, n=1)
    hint = f"; did you mean {matches[0]}://?" if matches else "."
    raise UnknownTransport(
        f"{hide_passwords(url)}: there is no transport for {scheme or 'a URL without a scheme'}{hint} "
        f"Known: {', '.join(f'{name}://' for name in schemes)}. "
        f"Other transports come as packages with an entry point in {ENTRY_POINT_GROUP!r}."
    )
