"""One Redis server, reached and reached again: scripts, what its refusals mean, and a renewal of its own.

A call is repeated while the server cannot be reached, up to RETRY_SECONDS. That is sound because every one may happen
twice: a put knows its number, an ack finds nothing left, a read gets again what an answer that was lost had in it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import redis
import redis.asyncio

from transports.errors import QueueStorageError
from transports.redis_streams import scripts
from transports.urls import without_password

Fields: TypeAlias = tuple[bytes, dict[bytes, bytes]]
"""The id of a record and its fields."""

RETRY_SECONDS = 30.0
_RETRY_PAUSE = (0.02, 0.5)
_SOCKET_SECONDS = 15.0
_LOST = (redis.ConnectionError, redis.TimeoutError, OSError)


def server_url(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without our options, and what the environment adds: REDIS_USERNAME and REDIS_PASSWORD."""
    parts = urlsplit(url)
    credentials: dict[str, Any] = {}
    if parts.password is None and os.environ.get("REDIS_PASSWORD"):
        credentials["password"] = os.environ["REDIS_PASSWORD"]
        if parts.username is None and os.environ.get("REDIS_USERNAME"):
            credentials["username"] = os.environ["REDIS_USERNAME"]
    return urlunsplit(parts._replace(query="")), credentials


class Server:
    """Runs scripts for one handle, on its event loop."""

    def __init__(self, url: str, ca_file: str) -> None:
        self.url = without_password(url)
        address, options = server_url(url)
        if ca_file:
            options["ssl_ca_certs"] = ca_file
        options |= {"socket_timeout": _SOCKET_SECONDS, "socket_connect_timeout": _SOCKET_SECONDS, "protocol": 2}
        self._connect: Callable[[], Any] = lambda: redis.asyncio.Redis.from_url(address, **options)
        self._connect_renewal: Callable[[], Any] = lambda: redis.Redis.from_url(address, **options)
        self._client: Any = None
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        """Run a script. Raises QueueStorageError."""
        return await self._persist(lambda: self._script(script)(keys=keys, args=args))

    async def add(
        self, stream: str, fields: dict[str, Any], script: str, keys: Sequence[str], args: Sequence[Any]
    ) -> Any:
        """Add a record to a stream and run a script over that, as one transaction; the answer of the script."""

        async def transaction() -> Any:
            async with self._connected().pipeline(transaction=True) as pipeline:
                # By its text: a script that the server does not know must not fail behind an XADD that has happened.
                pipeline.xadd(stream, fields).eval(script, len(keys), *keys, *args)
                return (await pipeline.execute())[1]

        return await self._persist(transaction)

    async def read(self, stream: str, group: str, consumer: str, last: str, count: int) -> list[Fields] | None:
        """What is new in a consumer group, after its record `last`; None if the group is there no longer."""

        async def both() -> Any:
            async with self._connected().pipeline(transaction=False) as pipeline:
                # First what the server gave out before, in an answer that never arrived.
                pipeline.xreadgroup(group, consumer, {stream: last}, count=count)
                pipeline.xreadgroup(group, consumer, {stream: ">"}, count=count)
                return await pipeline.execute()

        try:
            missed, new = await self._persist(both, expected="NOGROUP")
        except LookupError:
            return None
        return [entry for found in (missed, new) if found for entry in found[0][1]]

    async def _persist(self, call: Callable[[], Awaitable[Any]], expected: str | None = None) -> Any:
        """Make a call, again and again while the server is away. LookupError for the refusal that is expected."""
        deadline = time.monotonic() + RETRY_SECONDS
        pause, longest = _RETRY_PAUSE
        while True:
            try:
                return await call()
            except redis.exceptions.AuthenticationError as error:
                raise QueueStorageError(f"{self.url}: the server refuses our user or password: {error}") from error
            except _LOST as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise QueueStorageError(
                        f"{self.url}: the certificate of the server is not trusted: {error} Name the authority that "
                        "signed it with ca_file."
                    ) from error
                if time.monotonic() + pause > deadline:
                    raise QueueStorageError(
                        f"{self.url}: the server could not be reached for {RETRY_SECONDS:g} s: {error}. Is it running?"
                    ) from error
            except redis.RedisError as error:
                if expected is not None and expected in str(error):
                    raise LookupError(str(error)) from error
                raise self._refusal(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def renewal(self, lease_time: float) -> Renewal:
        return Renewal(self._connect_renewal, lease_time)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _script(self, text: str) -> Any:
        if text not in self._scripts:
            self._scripts[text] = self._connected().register_script(text)
        return self._scripts[text]

    def _refusal(self, error: redis.RedisError) -> QueueStorageError:
        text = str(error)
        meaning = next((meaning for sign, meaning in _REFUSALS.items() if sign in text), "the server refused")
        return QueueStorageError(f"{self.url}: {meaning}: {text}")


_NO_RIGHTS = "this user may not run what the queue needs: streams, hashes, strings, scripts and transactions"
_REFUSALS = {
    "OOM": "the server is out of memory; raise its maxmemory or let the consumer catch up",
    "maxmemory": "the server is out of memory; raise its maxmemory or let the consumer catch up",
    "read only": "this server is a read-only replica; use the address of its master",
    "MISCONF": "the server cannot write its own files, and takes nothing",
    "no permissions": _NO_RIGHTS,
    "can't run this command": _NO_RIGHTS,
    "nknown": "the server lacks a command that the queue needs; Redis 6.2 or later does, and so does Valkey",
    "syntax error": "the server lacks an option that the queue needs; Redis 6.2 or later does, and so does Valkey",
}


class Renewal:
    """Keeps this handle's leases alive from a thread with a connection of its own, however busy the event loop is."""

    def __init__(self, connect: Callable[[], Any], lease_time: float) -> None:
        self._connect = connect
        self._lease_time = lease_time
        self._leases: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease-renewal", daemon=True)

    def cover(self, leases: dict[str, str]) -> None:
        """Renew these keys from now on, while they have these values, all in one call."""
        if leases == self._leases:
            return
        self._leases = leases
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_renewing(self) -> None:
        client = self._connect()
        renew = client.register_script(scripts.RENEW)
        while not self._stop.wait(self._lease_time / 4):
            leases = self._leases
            try:
                renew(keys=list(leases), args=[round(1000 * self._lease_time), *leases.values()])
            except (redis.RedisError, OSError):
                continue  # tried again in a moment; the lease is fenced, so a missed renewal costs only redelivery
        client.close()
