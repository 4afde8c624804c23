"""The connection to a Redis server. It runs scripts with retries, explains the server's errors, and renews leases.

If the server cannot be reached, a call is repeated for RETRY_SECONDS. This is safe, because every call may run twice: a
put has a number, a second ack changes nothing, and a second read returns the records of a lost answer again. If the
server has never answered this process, and no server listens at the address, the address is probably wrong. Then the
error is raised after a second.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import redis
import redis.asyncio

from transports.errors import QueueCorrupt, QueueError, QueueStorageError
from transports.redaction import hide_passwords
from transports.redis_streams import scripts
from transports.redis_streams.entries import decode_lossy
from transports.urls import without_password

RawEntry: TypeAlias = tuple[bytes, dict[bytes, bytes]]
"""The id and the fields of an entry in a stream."""

RETRY_SECONDS = 30.0
"""Seconds for which a call is repeated while the server cannot be reached."""
_FIRST_ANSWER_SECONDS = 1.0
"""Seconds before an error is raised if no server has ever answered. A server that was just started needs some time."""
_RETRY_DELAY_SECONDS = (0.02, 0.5)
_SOCKET_TIMEOUT = 15.0
_CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, OSError)
_reached_addresses: set[str] = set()
"""The addresses of servers that have answered this process. If such a server is away, a call waits for it."""


def server_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return the URL without its query, and the login from REDIS_USERNAME and REDIS_PASSWORD as client options."""
    parts = urlsplit(url)
    login_options: dict[str, Any] = {}
    if parts.password is None and os.environ.get("REDIS_PASSWORD"):
        login_options["password"] = os.environ["REDIS_PASSWORD"]
        if parts.username is None and os.environ.get("REDIS_USERNAME"):
            login_options["username"] = os.environ["REDIS_USERNAME"]
    return urlunsplit(parts._replace(query="")), login_options


class RedisClient:
    """Runs scripts on the server for one handle, on the event loop of that handle."""

    def __init__(self, url: str, ca_file: str) -> None:
        self.url = without_password(hide_passwords(url))
        address, client_options = server_url(url)
        self._address = urlsplit(self.url).netloc
        if ca_file:
            client_options["ssl_ca_certs"] = ca_file
        client_options |= {"socket_timeout": _SOCKET_TIMEOUT, "socket_connect_timeout": _SOCKET_TIMEOUT, "protocol": 2}
        self._new_client: Callable[[], Any] = lambda: redis.asyncio.Redis.from_url(address, **client_options)
        self._new_sync_client: Callable[[], Any] = lambda: redis.Redis.from_url(address, **client_options)
        self._client: Any = None
        self._registered_scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        """Run a script, and return its answer.

        Raises:
            QueueStorageError: the server cannot be reached, or refuses the script.
            QueueCorrupt: the keys of the queue are damaged.
        """
        return await self._retry(lambda: self._get_script(script)(keys=keys, args=args))

    async def add_entry(
        self, stream: str, fields: dict[str, Any], script: str, keys: Sequence[str], args: Sequence[Any]
    ) -> Any:
        """Add a record to a stream, and run a script in the same transaction. Return the answer of the script."""

        async def transaction() -> Any:
            async with self._get_client().pipeline(transaction=True) as pipeline:
                # EVAL sends the text of the script. EVALSHA could fail after the XADD if the script is not known.
                pipeline.xadd(stream, fields).eval(script, len(keys), *keys, *args)
                return (await pipeline.execute())[1]

        return await self._retry(transaction)

    async def read_group(
        self, stream: str, group: str, consumer: str, after_id: str, count: int
    ) -> list[RawEntry] | None:
        """Return the records after `after_id` for a consumer of a group. Return None if the group does not exist."""

        async def read_missed_and_new() -> Any:
            async with self._get_client().pipeline(transaction=False) as pipeline:
                # First, read the records of an earlier answer that never arrived.
                pipeline.xreadgroup(group, consumer, {stream: after_id}, count=count)
                pipeline.xreadgroup(group, consumer, {stream: ">"}, count=count)
                return await pipeline.execute()

        try:
            missed, new = await self._retry(read_missed_and_new, expected_refusal="NOGROUP")
        except LookupError:
            return None
        return [entry for answer in (missed, new) if answer for entry in answer[0][1]]

    async def _retry(self, call: Callable[[], Awaitable[Any]], expected_refusal: str | None = None) -> Any:
        """Return the result of a call. Repeat the call while the server cannot be reached.

        Raises LookupError if the server's error contains the text `expected_refusal`.
        """
        began = time.monotonic()
        deadline = began + RETRY_SECONDS
        delay, max_delay = _RETRY_DELAY_SECONDS
        while True:
            try:
                answer = await call()
                _reached_addresses.add(self._address)
                return answer
            except redis.exceptions.AuthenticationError as error:
                raise QueueStorageError(
                    f"{self.url}: the server refuses the user or the password: {error}. Set them in the URL, or in "
                    "REDIS_USERNAME and REDIS_PASSWORD."
                ) from error
            except _CONNECTION_ERRORS as error:
                if (
                    self._address not in _reached_addresses
                    and time.monotonic() - began > _FIRST_ANSWER_SECONDS
                    and (problem := _wrong_address_problem(error)) is not None
                ):
                    raise QueueStorageError(
                        f"{self.url}: {problem}. Start the Redis server, or correct this URL."
                    ) from error
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise QueueStorageError(
                        f"{self.url}: the certificate of the server is not trusted: {error} Set ca_file to the file "
                        "of the certificate authority that signed it."
                    ) from error
                if time.monotonic() + delay > deadline:
                    raise QueueStorageError(
                        f"{self.url}: the server could not be reached for {RETRY_SECONDS:g} s: {error}. Check that it "
                        "runs."
                    ) from error
            except redis.RedisError as error:
                if expected_refusal is not None and expected_refusal in str(error):
                    raise LookupError(str(error)) from error
                raise self._storage_error(error) from error
            await asyncio.sleep(delay)
            delay = min(2 * delay, max_delay)

    def new_lease_renewer(self, lease_time: float) -> LeaseRenewer:
        """Return a new LeaseRenewer, which uses its own connection."""
        return LeaseRenewer(self._new_sync_client, lease_time)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()

    def _get_client(self) -> Any:
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def _get_script(self, source: str) -> Any:
        if source not in self._registered_scripts:
            self._registered_scripts[source] = self._get_client().register_script(source)
        return self._registered_scripts[source]

    def _storage_error(self, error: redis.RedisError) -> QueueError:
        message = str(error)
        if any(pattern in message for pattern in _SIGNS_OF_DAMAGE):
            return QueueCorrupt(
                f"{self.url}: the keys of the queue are damaged: {message}. Find the other program that writes to them."
            )
        meaning = next(
            (meaning for pattern, meaning in _REFUSAL_MEANINGS.items() if pattern in message),
            "the server refused the operation",
        )
        return QueueStorageError(f"{self.url}: {meaning}: {message}")


def damaged_key_error(url: str, problem: bytes) -> QueueCorrupt:
    """Return the error for a key that is damaged. The problem is what a script found."""
    return QueueCorrupt(
        f"{url}: a key of the queue is damaged: {decode_lossy(problem)}. Another program uses this key. Choose another "
        "name for the queue (?stream=), or delete the key."
    )


def _wrong_address_problem(error: BaseException) -> str | None:
    """Return what is wrong with the address if this error shows that no server is there. Otherwise return None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "no server listens at this address (connection refused)"
        if isinstance(cause, socket.gaierror):
            return f"this host is not known ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return None


_SIGNS_OF_DAMAGE = ("WRONGTYPE", "not an integer", "attempt to ", "no such key")
_NO_PERMISSION = "this user may not use streams, hashes, strings, scripts and transactions, which the queue needs"
_REFUSAL_MEANINGS = {
    "OOM": "the server is out of memory; raise its maxmemory or let the consumer catch up",
    "maxmemory": "the server is out of memory; raise its maxmemory or let the consumer catch up",
    "read only": "this server is a read-only replica; use the address of its master",
    "MISCONF": "the server cannot write its files, so it accepts no records; check its disk",
    "no permissions": _NO_PERMISSION,
    "can't run this command": _NO_PERMISSION,
    "nknown": "the server does not have a command that the queue needs; use Redis 6.2 or later, or Valkey",
    "syntax error": "the server does not have an option that the queue needs; use Redis 6.2 or later, or Valkey",
}


class LeaseRenewer:
    """Renews the leases of a handle, from a thread with its own connection. So a busy event loop does not lose them."""

    def __init__(self, new_client: Callable[[], Any], lease_time: float) -> None:
        self._new_client = new_client
        self._lease_time = lease_time
        self._leases: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease-renewal", daemon=True)

    def set_leases(self, leases: dict[str, str]) -> None:
        """Renew these keys from now on, each while it has the given value. Start the thread if needed."""
        if leases == self._leases:
            return
        self._leases = leases
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_renewing(self) -> None:
        client = self._new_client()
        renew = client.register_script(scripts.RENEW_LEASES)
        while not self._stop.wait(self._lease_time / 4):
            leases = self._leases
            try:
                renew(keys=list(leases), args=[round(1000 * self._lease_time), *leases.values()])
            except (redis.RedisError, OSError):
                continue  # the next renewal comes soon; if the lease expires, records are only delivered again
        client.close()
