"""Handles the HTTP requests of the gateway: finds the dialect and the endpoint, and writes what they answer.

A request that can be refused is refused with a status before the first byte. A streamed answer begins when only the
engine is missing. Until the answer is there, a comment every few seconds keeps the connection alive.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web

from rollout.api_keys import hide_keys
from rollout.gateway.addresses import KEY_PATH
from rollout.gateway.compression import BodyDecompressor
from rollout.gateway.connections import GatewayConnection
from rollout.gateway.dialects.base import Dialect, RefusalReason, RequestRefused
from rollout.gateway.dialects.chat import ChatDialect
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.gateway.dialects.messages_answers import write_token_count
from rollout.gateway.dialects.request_body import RequestBody
from rollout.gateway.dialects.responses import ResponsesDialect
from rollout.gateway.endpoint import GatewayEndpoint
from rollout.gateway.flights import Flight
from rollout.gateway.rewards import REWARD_PATHS
from rollout.metrics.worker import WorkerMetrics
from rollout.records.endings import RolloutLimit
from rollout.records.gateway_counts import RequestOutcome

log = structlog.get_logger()

_COMMENT_INTERVAL = 3.0
_COMMENT = b": waiting for the model\n\n"
_DialectClass = type[ChatDialect] | type[ResponsesDialect] | type[MessagesDialect]
_DIALECTS: dict[str, _DialectClass] = {
    "/v1/chat/completions": ChatDialect,
    "/v1/responses": ResponsesDialect,
    "/v1/messages": MessagesDialect,
}
_COUNT_PATH = "/v1/messages/count_tokens"
_MODELS_PATH = "/v1/models"
_POST_PATHS = (*_DIALECTS, _COUNT_PATH, REWARD_PATHS[0])
FindEndpoint = Callable[[Sequence[str]], GatewayEndpoint]
"""Returns the endpoint of the first known one of the keys of a request, or raises RequestRefused."""


@dataclass(slots=True)
class _Measured:
    """What the metrics say of a request."""

    dialect: str
    outcome: RequestOutcome = RequestOutcome.CANCELLED


class RequestHandler:
    """Handles the requests of one server."""

    def __init__(
        self,
        find_endpoint: FindEndpoint,
        model: str,
        max_body_bytes: int,
        body_timeout: float,
        metrics: WorkerMetrics,
    ) -> None:
        self._find_endpoint = find_endpoint
        self._model = model
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout
        self._metrics = metrics

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request. It raises an error only if the program hung up."""
        if isinstance(request.protocol, GatewayConnection):
            request.protocol.note_request()
        path, path_key = _split_key(request.path)
        keys = _header_keys(request) if path_key is None else (path_key,)
        dialect_class = _dialect_of_path(path)
        measured = _Measured(dialect_class.name)
        started_at = time.monotonic()
        try:
            return await self._answer(request, path, keys, dialect_class, measured)
        except RequestRefused as refusal:
            failed = refusal.reason is RefusalReason.FAILED
            measured.outcome = RequestOutcome.FAILED if failed else RequestOutcome.REFUSED
            return _json_response(dialect_class().write_refusal(refusal), refusal.reason.status)
        except asyncio.CancelledError:
            raise
        except ConnectionError:
            return _json_response(b"")  # nobody gets it; aiohttp would log the error with its traceback
        except Exception as error:  # noqa: BLE001 - an error of one request must not end the connection's task
            measured.outcome = RequestOutcome.FAILED
            failure = _report_failure(error, dialect_class.name)
            return _json_response(dialect_class().write_refusal(failure), failure.reason.status)
        finally:
            if path in _DIALECTS:
                seconds = time.monotonic() - started_at
                self._metrics.record_gateway_request(measured.dialect, measured.outcome, seconds)

    async def _answer(
        self,
        request: web.BaseRequest,
        path: str,
        keys: Sequence[str],
        dialect_class: type[Dialect],
        measured: _Measured,
    ) -> web.StreamResponse:
        match request.method, path:
            case (("GET" | "HEAD"), "/"):
                return _json_response(b'{"status":"ok"}')
            case (("GET" | "HEAD"), str(found)) if found == _MODELS_PATH or found.startswith(f"{_MODELS_PATH}/"):
                return self._answer_models(self._find_endpoint(keys), found)
            case "POST", str(found) if found == _COUNT_PATH:
                endpoint = self._find_endpoint(keys)
                body = await self._read_body(request)
                count = await endpoint.count_tokens(body)
                measured.outcome = RequestOutcome.OK
                return _json_response(write_token_count(count))
            case "POST", str(found) if found in REWARD_PATHS:
                endpoint = self._find_endpoint(keys)
                endpoint.require_reward_accepted()
                endpoint.post_reward(await self._read_body(request))
                return _json_response(b'{"accepted":true}')
            case "POST", str(found) if found in _DIALECTS:
                endpoint = self._find_endpoint(keys)
                body = await self._read_body(request)
                return await self._answer_turn(request, endpoint.fly(dialect_class, body), endpoint, measured)
        raise self._unknown_path(keys, request.method[:20], hide_keys(path)[:200])

    def _unknown_path(self, keys: Sequence[str], method: str, path: str) -> RequestRefused:
        """Return the refusal of a path that does not exist; the endpoint of the key, if there is one, counts it."""
        with suppress(RequestRefused):
            self._find_endpoint(keys).note_unknown_path(method, path)
        hint = " OPENAI_BASE_URL already ends in /v1." if path.startswith("/v1/v1/") else ""
        return RequestRefused(
            f"The gateway has no {method} {path}.{hint} It has POST {', POST '.join(_POST_PATHS)} "
            f"and GET {_MODELS_PATH}.",
            reason=RefusalReason.NOT_FOUND,
        )

    def _answer_models(self, endpoint: GatewayEndpoint, path: str) -> web.Response:
        entry = {
            "id": self._model,
            "object": "model",
            "type": "model",
            "display_name": self._model,
            "created": 0,
            "created_at": "1970-01-01T00:00:00Z",
            "owned_by": "rollout",
            "max_model_len": endpoint.max_model_len,
        }
        if path != _MODELS_PATH:
            return _json_response(orjson.dumps({**entry, "id": hide_keys(path.removeprefix(f"{_MODELS_PATH}/"))}))
        ends = {"first_id": self._model, "last_id": self._model, "has_more": False}
        return _json_response(orjson.dumps({"object": "list", "data": [entry], **ends}))

    async def _read_body(self, request: web.BaseRequest) -> RequestBody:
        """Read the body. Raises RequestRefused if it is too large or too slow."""
        if (length := request.content_length) is not None and length > self._max_body_bytes:
            raise self._too_large()
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        decompressor = BodyDecompressor(request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                async for data in request.content.iter_any():
                    body += decompressor.read(data, self._max_body_bytes - len(body))
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
        except TimeoutError:
            raise RequestRefused(f"The body of the request did not arrive within {self._body_timeout:g} s.") from None
        except (web.RequestPayloadError, ValueError) as error:
            raise RequestRefused(f"The body of the request cannot be read: {type(error).__name__}.") from None
        decompressor.require_end()
        return RequestBody(body)

    def _too_large(self) -> RequestRefused:
        return RequestRefused(
            f"The body of the request is larger than {self._max_body_bytes:,} bytes (gateway.max_body_bytes).",
            reason=RefusalReason.TOO_LARGE,
        )

    async def _answer_turn(
        self, request: web.BaseRequest, flight: Flight, endpoint: GatewayEndpoint, measured: _Measured
    ) -> web.StreamResponse:
        async with flight.waiting():
            await flight.ready.wait()
            if flight.request is None or not flight.request.streamed:
                await flight.done.wait()
            if flight.done.is_set():
                flight.raise_refusal()
            if flight.request is not None and flight.request.streamed:
                return await self._stream(request, flight, endpoint, measured)
            body = flight.written_answer()
            response = _json_response(body, limit=flight.limit)
            await response.prepare(request)
            await response.write_eof()
            self._note_sent(request, flight, endpoint, measured)
            return response

    async def _stream(
        self, request: web.BaseRequest, flight: Flight, endpoint: GatewayEndpoint, measured: _Measured
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        while not flight.done.is_set():
            try:
                async with asyncio.timeout(_COMMENT_INTERVAL):
                    await flight.done.wait()
            except TimeoutError:
                await response.write(_COMMENT)
        try:
            flight.raise_refusal()
            events = _join(flight.written_events())
        except Exception as error:  # noqa: BLE001 - the stream has begun, so the error must be an event
            refusal = error if isinstance(error, RequestRefused) else _report_failure(error, flight.dialect.name)
            failed = refusal.reason is RefusalReason.FAILED
            measured.outcome = RequestOutcome.FAILED if failed else RequestOutcome.REFUSED
            assert flight.request is not None
            await response.write_eof(_join(flight.dialect.write_failure_events(flight.request, refusal)))
            return response
        # One write for all events: a client that hangs up after the last event has then read the end of the stream.
        await response.write_eof(events)
        self._note_sent(request, flight, endpoint, measured)
        return response

    def _note_sent(
        self, request: web.BaseRequest, flight: Flight, endpoint: GatewayEndpoint, measured: _Measured
    ) -> None:
        """Note that the last byte of an answer was sent; take it back if the connection is reset."""
        measured.outcome = RequestOutcome.OK if flight.limit is RolloutLimit.NONE else RequestOutcome.LIMIT
        if request.transport is None or request.transport.is_closing():
            return
        turns = tuple(flight.turns)
        endpoint.deliveries.mark_sent(turns)
        if isinstance(request.protocol, GatewayConnection):
            request.protocol.on_reset = lambda: endpoint.deliveries.mark_reset(turns)


def _split_key(path: str) -> tuple[str, str | None]:
    """Return a path without the key in it, and the key; None if the path has no key."""
    if not path.startswith(KEY_PATH):
        return path, None
    key, slash, rest = path.removeprefix(KEY_PATH).partition("/")
    return slash + rest or "/", key


def _header_keys(request: web.BaseRequest) -> Sequence[str]:
    """Return the keys of the headers: the bearer token, and `x-api-key`.

    Both may be there, because some programs send a key of their own in one of them.
    """
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, request.headers.get("x-api-key", "")) if key]


def _dialect_of_path(path: str) -> _DialectClass:
    """Return the dialect in which errors of a path are written."""
    if path.startswith("/v1/messages"):
        return MessagesDialect
    return _DIALECTS.get(path, ChatDialect)


def _report_failure(error: Exception, dialect: str) -> RequestRefused:
    """Log an error of the gateway itself, and return the refusal that the program gets."""
    log.error("a request of a program failed", dialect=dialect, exc_info=error)
    return RequestRefused(
        f"The gateway failed with {type(error).__name__}; the log of the worker has the error.",
        reason=RefusalReason.FAILED,
    )


def _json_response(body: bytes, status: int = 200, limit: RolloutLimit = RolloutLimit.NONE) -> web.Response:
    headers: dict[str, Any] = {} if limit is RolloutLimit.NONE else {"X-Rollout-Limit": limit.value}
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _join(events: Iterable[bytes]) -> bytes:
    return b"".join(events)
