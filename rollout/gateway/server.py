"""The HTTP server of the gateway: one for each worker process, started when the first rollout opens an endpoint.

    async with Gateway(config.gateway, model="qwen", metrics=metrics) as gateway:
        async with gateway.open_endpoint(session) as endpoint:
            ...

It finds the endpoint of a request by its key, and the dialect by its path. It knows no tokens and no messages.
"""

import asyncio
import contextvars
import errno
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import structlog

from rollout.api_keys import new_key
from rollout.config.gateway import GatewayConfig
from rollout.environments.endpoint import DEFAULT_ENDPOINT_OPTIONS, Endpoint, EndpointOptions
from rollout.errors import RolloutError
from rollout.gateway.addresses import EndpointAddresses
from rollout.gateway.connections import GatewayConnection, GatewayServer
from rollout.gateway.dialects.base import RefusalReason, RequestRefused, rollout_ended
from rollout.gateway.endpoint import GatewayEndpoint
from rollout.gateway.requests import FindEndpoint, RequestHandler
from rollout.gateway.timeouts import DEFAULT_TIMEOUTS, GatewayTimeouts
from rollout.gateway.unix_socket import PrivateSocket
from rollout.metrics.worker import WorkerMetrics
from rollout.session.turns import EndpointSession

log = structlog.get_logger()

_MAX_ENDED_KEYS = 65_536
_SHUTDOWN_TIMEOUT = 2.0
_BACKLOG = 1024


class GatewayUnavailable(RolloutError):
    """The gateway cannot listen at the configured address, or at the socket of an endpoint."""

    infrastructure = True


class Gateway:
    """The gateway of one worker process."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        model: str,
        metrics: WorkerMetrics,
        timeouts: GatewayTimeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Make a gateway, which does not listen yet.

        Args:
            config: the section `gateway` of the YAML.
            model: the name under which the engines serve the model.
            metrics: the metrics of the worker.
            timeouts: how long the server waits for slow programs.
        """
        self._config = config
        self._model = model.rstrip("/").rpartition("/")[2] or model
        self._metrics = metrics
        self._timeouts = timeouts
        # Connections must not run in the context of the attempt that happens to start the server.
        self._context = contextvars.copy_context()
        self._endpoints: dict[str, GatewayEndpoint] = {}
        self._ended_keys: OrderedDict[str, None] = OrderedDict()
        self._start_lock = asyncio.Lock()
        self._server: GatewayServer | None = None
        self._listeners: list[asyncio.Server] = []
        self._socket: PrivateSocket | None = None
        self._address = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.close()
        if self._server is not None:
            await self._server.shutdown(_SHUTDOWN_TIMEOUT)
        for listener in self._listeners:
            await listener.wait_closed()
        self._listeners.clear()
        if self._socket is not None:
            self._socket.remove()

    @asynccontextmanager
    async def open_endpoint(
        self, session: EndpointSession, options: EndpointOptions = DEFAULT_ENDPOINT_OPTIONS
    ) -> AsyncIterator[Endpoint]:
        """Open an endpoint for a session. If the infrastructure fails, the block is cancelled, and its error is raised.

        Raises:
            GatewayUnavailable: the gateway cannot listen.
            EngineError, QueueError: a turn of the program failed, so that the rollout cannot continue.
        """
        await self._start()
        key = new_key()
        if options.socket is None:
            addresses = EndpointAddresses(self._address, self._model, key, self._config.unix_socket)
            async with self._open(session, options, addresses) as endpoint:
                yield endpoint
            return
        addresses = EndpointAddresses(options.socket.address, self._model, key, options.socket.path)
        async with (
            self._listen_at_socket(options.socket.path, key),
            self._open(session, options, addresses) as endpoint,
        ):
            yield endpoint

    @asynccontextmanager
    async def _open(
        self, session: EndpointSession, options: EndpointOptions, addresses: EndpointAddresses
    ) -> AsyncIterator[GatewayEndpoint]:
        endpoint = GatewayEndpoint(session, self._config, addresses, self._metrics, options)
        session.endpoint_reports.append(endpoint)
        self._endpoints[endpoint.key] = endpoint
        try:
            with endpoint.cancel_scope:
                yield endpoint
        except Exception as error:
            if endpoint.failure is None:
                raise
            raise endpoint.failure from error
        finally:
            self._forget(endpoint.key)
            await endpoint.close()
        if endpoint.failure is not None:
            raise endpoint.failure
        endpoint.root_kinds()  # an error of the environment's rule is raised here, in the environment

    def find_endpoint(self, keys: Sequence[str]) -> GatewayEndpoint:
        """Return the endpoint of the first key that has one. Raises RequestRefused; the text contains no key."""
        if not keys:
            raise RequestRefused(
                "The request has no key. Send that of the endpoint as `Authorization: Bearer KEY` or as `x-api-key`.",
                reason=RefusalReason.UNKNOWN_KEY,
            )
        for key in keys:
            if (endpoint := self._endpoints.get(key)) is not None:
                return endpoint
        if any(key in self._ended_keys for key in keys):
            raise rollout_ended()
        raise _unknown_key()

    def _forget(self, key: str) -> None:
        del self._endpoints[key]
        self._ended_keys[key] = None
        if len(self._ended_keys) > _MAX_ENDED_KEYS:
            self._ended_keys.popitem(last=False)

    async def _start(self) -> None:
        """Listen, if no earlier rollout has started the server."""
        async with self._start_lock:
            if self._server is None:
                await asyncio.create_task(self._listen(), context=self._context)

    def _make_server(self, find_endpoint: FindEndpoint) -> GatewayServer:
        handler = RequestHandler(
            find_endpoint, self._model, self._config.max_body_bytes, self._timeouts.body, self._metrics
        )
        return GatewayServer(handler.handle)

    def _connect(self, server: GatewayServer) -> asyncio.Protocol:
        loop = asyncio.get_running_loop()
        return GatewayConnection(server, loop=loop, metrics=self._metrics, timeouts=self._timeouts)

    @asynccontextmanager
    async def _listen_at_socket(self, path: Path, key: str) -> AsyncIterator[None]:
        """Listen at a unix socket that accepts one key alone. No file and no connection is left at the end."""

        def find_endpoint(keys: Sequence[str]) -> GatewayEndpoint:
            if keys and key not in keys:
                raise _unknown_key()
            return self.find_endpoint([key] if keys else [])

        server = self._make_server(find_endpoint)
        bound = _bind_socket(path)
        listener: asyncio.Server | None = None
        try:
            listener = await asyncio.get_running_loop().create_unix_server(
                partial(self._connect, server), sock=bound.socket, backlog=_BACKLOG, start_serving=False
            )
            await asyncio.create_task(listener.start_serving(), context=self._context)
            yield
        finally:
            bound.remove()
            bound.socket.close() if listener is None else listener.close()
            with anyio.CancelScope(shield=True):
                await server.shutdown(_SHUTDOWN_TIMEOUT)

    async def _listen(self) -> None:
        server = self._make_server(self.find_endpoint)
        connect = partial(self._connect, server)
        loop, config = asyncio.get_running_loop(), self._config
        try:
            self._listeners.append(await loop.create_server(connect, config.host, config.port, backlog=_BACKLOG))
            if config.unix_socket is not None:
                self._socket = PrivateSocket.bind(config.unix_socket)
                listener = await loop.create_unix_server(connect, sock=self._socket.socket, backlog=_BACKLOG)
                self._listeners.append(listener)
        except OSError as error:
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            raise GatewayUnavailable(
                f"the gateway cannot listen at {config.host}:{config.port}"
                f"{f' and {config.unix_socket}' if config.unix_socket else ''} ({error.strerror or error}). "
                "Correct gateway.host, gateway.port (0: a free port) or gateway.unix_socket."
            ) from None
        self._server = server
        self._address = config.advertised_address(self._listeners[0].sockets[0].getsockname()[1])
        log.info("the gateway listens", address=self._address)


def _bind_socket(path: Path) -> PrivateSocket:
    """Bind the socket of one endpoint. Raises GatewayUnavailable, which says what to do."""
    if not path.parent.is_dir():
        raise GatewayUnavailable(
            f"the gateway cannot listen at {path}, because its directory does not exist; create it before "
            "`model.endpoint(socket=…)`."
        )
    try:
        return PrivateSocket.bind(path)
    except OSError as error:
        if error.errno in (None, errno.ENAMETOOLONG):
            fix = f"The path has {len(os.fsencode(path))} bytes, and systems accept about 104; use a shorter one"
        else:
            fix = "Use a path in a directory that this user can write to, and at which no other process listens"
        raise GatewayUnavailable(f"the gateway cannot listen at {path}: {error.strerror or error}. {fix}.") from None


def _unknown_key() -> RequestRefused:
    return RequestRefused(
        "The key of the request is unknown. Use the key that the endpoint has in `endpoint.key`.",
        reason=RefusalReason.UNKNOWN_KEY,
    )
