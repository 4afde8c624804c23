"""Finds the transport for a URL: a built-in one, one that the program registered, or one from an installed package.

The module of a transport is imported when a URL first needs it. So a client library must be installed only if a queue
that needs it is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from transports.base import Lease, Queue
from transports.errors import QueueURLError, UnknownTransport
from transports.redaction import hide_passwords
from transports.urls import split_url

ENTRY_POINT_GROUP = "rollout.transports"

_REDIS = ("transports.redis_streams.queue:RedisQueue", "transports.redis_streams.options:parse_redis_url")
_BUILT_IN = {
    "memory": ("transports.memory:MemoryQueue", "transports.memory:parse_memory_url"),
    "file": ("transports.files.queue:open_file_queue", "transports.files.queue:parse_file_url"),
    "zmq": ("transports.zeromq.queue:ZmqQueue", "transports.zeromq.options:parse_zmq_url"),
    "redis": _REDIS,
    "rediss": _REDIS,
}
"""For each scheme: the factory, and a function that parses the URL without the client library."""


class TransportFactory(Protocol):
    """Makes handles. The factory does not connect to the queue; the first operation of a handle does."""

    def __call__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
        """Return a handle on the queue. `open_queue` explains the arguments."""


_registered: dict[str, TransportFactory] = {}


def register_transport(scheme: str, factory: TransportFactory) -> None:
    """Let `open_queue` use `factory` for the URLs of a scheme in this process.

    A package declares an entry point instead. Raises QueueURLError if another factory is registered for the scheme.
    """
    if _registered.setdefault(scheme, factory) is not factory:
        raise QueueURLError(f"another transport is already registered for {scheme}://; choose another scheme")


def open_queue(url: str, *, lease: Lease = "partition", consume: Sequence[int] | None = None) -> Queue:
    """Return a handle on a queue, for `async with`.

    Args:
        url: the URL of the queue.
        lease: whether a consumer leases whole partitions (for trajectories) or single records (for tasks). All
            consumers of a queue must use the same value.
        consume: the numbers of the partitions that this consumer may lease. None: it may lease all of them.

    Raises:
        QueueURLError: the URL or one of its options is wrong.
        UnknownTransport: no transport is registered or installed for the scheme.
    """
    return _find_factory(url)(url, lease=lease, consume=consume)


def check_queue_url(url: str) -> None:
    """Check a URL. Do not open its queue, and do not import a client library.

    The options are checked only for a built-in transport; another transport checks them when the queue is opened.
    Raises QueueURLError if the URL is wrong, and UnknownTransport if no transport is known for its scheme.
    """
    scheme = split_url(url).scheme
    if scheme in _registered:
        return
    if scheme in _BUILT_IN:
        _import(_BUILT_IN[scheme][1])(url)
    elif not entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        raise _unknown_transport(url, scheme)


def _find_factory(url: str) -> TransportFactory:
    scheme = split_url(url).scheme
    if scheme in _registered:
        return _registered[scheme]
    if scheme in _BUILT_IN:
        try:
            return cast(TransportFactory, _import(_BUILT_IN[scheme][0]))
        except ModuleNotFoundError as error:
            raise UnknownTransport(
                f"{hide_passwords(url)}: {scheme}:// needs the package {error.name!r}, which is not installed; run "
                f"pip install 'rollout-rl[{'zmq' if error.name == 'zmq' else 'redis'}]'"
            ) from error
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        return cast(TransportFactory, entry.load())
    raise _unknown_transport(url, scheme)


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _unknown_transport(url: str, scheme: str) -> UnknownTransport:
    schemes = sorted({*_registered, *_BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})
    matches = difflib.get_close_matches(scheme, schemes, n=1)
    problem = f"unknown scheme '{scheme}://'" if scheme else "the URL has no scheme"
    hint = f"; did you mean '{matches[0]}://'?" if matches else "."
    return UnknownTransport(
        f"{hide_passwords(url)}: {problem}{hint} Known schemes are {', '.join(f'{name}://' for name in schemes)}. "
        f"If a package provides the scheme, install it (its entry point is in the group {ENTRY_POINT_GROUP})."
    )
