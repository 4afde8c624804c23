"""Asks the queues of a configuration whether they answer. It creates nothing there, and changes nothing."""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, NamedTuple

import anyio

from rollout.config.load import Config
from rollout.config.queue_urls import fill_queue_url
from rollout.doctor.disk import MIN_RECORD_BYTES_PER_ROLLOUT, file_system_type, nearest_existing, require_writable
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.errors import ConfigurationError
from transports import QueueError, QueueStorageError, QueueURLError, open_queue
from transports.files.directory import open_queue_directory
from transports.files.queue import parse_file_url
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, split_url

_ANSWER_TIMEOUT = 5.0
_MIN_RECORDS_PER_ROLLOUT = 3
_ZEROMQ_GREETING = b"\xff"
"""The first byte that a ZeroMQ socket sends to everyone who connects."""

QueueKey = Literal["url", "tasks", "control"]
"""A key of the section `queue`."""


class QueueAnswer(NamedTuple):
    """What asking a queue has shown."""

    status: CheckStatus
    """Whether the queue can be used."""
    text: str
    """What was found."""


def check_trajectories_queue(config: Config, run_directory: Path) -> CheckResult:
    """Check the high water of the trajectories queue, and ask the queue; return the finding.

    Raises:
        ConfigurationError: the high water is too low.
        QueueError: the queue cannot be used.
    """
    limits = anyio.run(_read_limits, fill_queue_url(config.queue.url, run_directory, config.run.name))
    rollouts_needed = 2 * config.policy.batch
    if not limits.admits(rollouts_needed * MIN_RECORD_BYTES_PER_ROLLOUT, rollouts_needed * _MIN_RECORDS_PER_ROLLOUT):
        raise ConfigurationError(
            f"queue.url: two batches of {config.policy.batch} rollouts (policy.batch) exceed the high water of "
            f"{limits.high_water_text}, even if the rollouts are short. A trainer that collects a batch while it "
            "trains on another would wait forever. Raise high_water, or lower policy.batch to the batch of the trainer."
        )
    answer = _ask(config, "url", run_directory)
    return CheckResult(
        "queue",
        f"{hide_passwords(config.queue.url)}: {answer.text}; two batches of {config.policy.batch} rollouts are below "
        f"the high water if each rollout has at most {limits.high_water // rollouts_needed:,} bytes",
        answer.status,
    )


def check_other_queue(config: Config, key: Literal["tasks", "control"], run_directory: Path) -> CheckResult | None:
    """Ask the queue of the orders or of the trainer's progress; return the finding.

    Returns:
        None if the queue is in the directory of the run, because `check_disk` checks that.

    Raises:
        QueueError: the queue cannot be used.
    """
    template: str = getattr(config.queue, key)
    if template.startswith("file://{run_dir}"):
        return None
    answer = _ask(config, key, run_directory)
    return CheckResult(f"queue.{key}", f"{hide_passwords(template)}: {answer.text}", answer.status)


def can_be_asked(url: str) -> bool:
    """Whether `doctor` knows how to ask a queue without opening it."""
    return split_url(url).scheme in _ASKING


def _ask(config: Config, key: QueueKey, run_directory: Path) -> QueueAnswer:
    """Ask a queue. Raises QueueError, which names the key of the YAML."""
    url = fill_queue_url(getattr(config.queue, key), run_directory, config.run.name)
    try:
        return anyio.run(_ask_in_time, url)
    except QueueURLError as error:
        raise QueueURLError(f"queue.{key}: {error}") from error
    except QueueError as error:
        raise QueueStorageError(f"queue.{key}: {error}") from error


async def _ask_in_time(url: str) -> QueueAnswer:
    await _read_limits(url)  # the client library is installed, and a transport of another package can be loaded
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            return await _ASKING.get(split_url(url).scheme, _ask_other)(url)
    except TimeoutError:
        raise QueueStorageError(
            f"{hide_passwords(url)}: no answer within {_ANSWER_TIMEOUT:g} s. Check the host and the port, that the "
            "server runs, and that no firewall is in between."
        ) from None


async def _read_limits(url: str) -> QueueOptions:
    """Return the options of a URL that every transport has."""
    if split_url(url).scheme == "file":  # opening would create the directory
        return parse_file_url(url)[1]
    async with open_queue(url) as queue:
        return queue.limits


async def _ask_memory(url: str) -> QueueAnswer:
    return QueueAnswer(CheckStatus.NOTHING, "in the memory of `rollout run`; no other process can reach it")


async def _ask_file(url: str) -> QueueAnswer:
    return await asyncio.to_thread(_inspect_directory, url)


def _inspect_directory(url: str) -> QueueAnswer:
    root, options = parse_file_url(url)
    parent = nearest_existing(root)
    where = f"{parent} ({file_system_type(parent) or 'unknown file system'})"
    if not os.path.exists(root / "queue.json"):
        try:
            require_writable(parent)
        except OSError as error:
            raise _not_writable(url, parent, error.strerror) from None
        return QueueAnswer(CheckStatus.OK, f"it can be created in {where}")
    queue_directory = open_queue_directory(url, root, options.partitions, retain=options.retain)
    for index in range(queue_directory.partitions):
        if not os.access(partition := queue_directory.partition_dir(index), os.W_OK | os.X_OK):
            raise _not_writable(url, partition, "this user may not write there")
    return QueueAnswer(CheckStatus.OK, f"it exists in {where}, and can be written")


def _not_writable(url: str, directory: Path, reason: str | None) -> QueueStorageError:
    return QueueStorageError(
        f"{hide_passwords(url)}: {directory} cannot be written: {reason}. Make it writable for this user, or give "
        "another directory."
    )


async def _ask_redis(url: str) -> QueueAnswer:
    from transports.redis_streams.asking import ask_redis_queue

    partitions = await ask_redis_queue(url)
    if partitions is None:
        return QueueAnswer(CheckStatus.OK, "the server answers and takes writes; the queue does not exist yet")
    return QueueAnswer(CheckStatus.OK, f"the server answers and takes writes; the queue has partitions={partitions}")


async def _ask_zmq(url: str) -> QueueAnswer:
    from transports.zeromq.options import parse_zmq_url

    host, port, options = parse_zmq_url(url)
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except socket.gaierror as error:
        raise QueueStorageError(f"{url}: this host is not known ({error.strerror}). Correct the host.") from None
    except OSError:
        return _find_server(url, host, port, may_serve=options.serve)
    try:
        if await reader.read(1) != _ZEROMQ_GREETING:
            raise QueueStorageError(f"{url}: another program uses this port. Choose another port, or end that program.")
    finally:
        writer.close()
    return QueueAnswer(CheckStatus.OK, "a process serves it")


def _find_server(url: str, host: str, port: int, *, may_serve: bool) -> QueueAnswer:
    """Return who can serve a queue that no process serves yet."""
    nobody = "no process serves it yet"
    if not may_serve:
        return QueueAnswer(CheckStatus.UNKNOWN, f"{nobody}, and with serve=false another process must: the trainer")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return QueueAnswer(
                    CheckStatus.UNKNOWN,
                    f"{nobody}, and {host} is another machine: start the process there that serves it",
                )
            raise QueueStorageError(
                f"{url}: this process cannot serve the address: {error.strerror}. Choose another port or host."
            ) from None
    return QueueAnswer(CheckStatus.OK, f"{nobody}; a process of this machine can serve it")


async def _ask_other(url: str) -> QueueAnswer:
    return QueueAnswer(
        CheckStatus.UNKNOWN,
        f"not asked, because the first operation of {split_url(url).scheme}:// may create the queue; `rollout queue "
        "stats` asks it",
    )


_ASKING: dict[str, Callable[[str], Awaitable[QueueAnswer]]] = {
    "memory": _ask_memory,
    "file": _ask_file,
    "redis": _ask_redis,
    "rediss": _ask_redis,
    "zmq": _ask_zmq,
}
