"""Sends requests to one or several engines, with deadlines, retries and typed errors.

A request is sent again if the engine could not be reached, did not answer in time, or answered with status 429 or 502
to 504. It is also sent again if the engine aborted it for new weights, or answered with older weights than required.
Before each retry there is a pause, which grows and has jitter. A retry goes to another engine if there is one. Every
other error is final.

If an engine refuses a request because it is paused for new weights, this is no failure and no retry. Another engine is
asked if there is one. Otherwise, the engines are asked again until one answers or the time for the answer is over.

A caller gets one answer, even if its request was sent several times. If the caller is cancelled, its request is aborted
on the server.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

import anyio
import orjson
import structlog

from renderers_adapter.geometry import Geometry
from rollout.config.sections import MultimodalMode
from rollout.engine.aiohttp_transport import AiohttpTransport
from rollout.engine.errors import (
    EngineAborted,
    EngineBehind,
    EngineBroken,
    EngineError,
    EngineMisconfigured,
    EnginePaused,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreachable,
    LogitBiasRefused,
)
from rollout.engine.protocol import Generation, decode_response, encode_request
from rollout.engine.refusals import PauseRefusals, jittered_pause
from rollout.engine.replica_checks import ReplicaChecker
from rollout.engine.request import GenerateRequest
from rollout.engine.routing import Replica, Router
from rollout.engine.seeds import SeedFilter
from rollout.engine.transport import EngineTransport
from rollout.records.messages import FinishReason
from rollout.records.versions import version_satisfies

log = structlog.get_logger()

_FIRST_RETRY_PAUSE_SECONDS, _MAX_RETRY_PAUSE_SECONDS = 0.25, 8.0
_RECHECK_TIMEOUT = 5.0
_STARTUP_CHECK_TIMEOUT = 30.0
_ABORT_TIMEOUT = 2.0
_RETRYABLE_ERRORS = (EngineUnreachable, EngineUnavailable, EngineTimeout)

RequestObserver = Callable[[str, str, float], None]
"""Called after each try with the engine's URL, the outcome of the try, and the seconds that it took."""
WaitObserver = Callable[[str], None]
"""Called with a text for people when a wait begins and when it ends."""


class EngineClient:
    """Sends requests to the engines that serve one model. Use it as an async context manager.

    Args:
        urls: the root URLs of the engines.
        model: the name of the model.
        timeout: the seconds for one answer, including all tries.
        request_timeout: the seconds for one try; None: the same as `timeout`.
        retries: the maximum number of retries of one request.
        affinity: whether all requests of a session go to the same engine, for its prefix cache.
        api_key: sent as a bearer token.
        multimodal: how images are sent; with `auto`, each engine is asked whether it resolves references.
        geometry: the geometry of the model's images; None: the model takes no images.
        on_try: called after every try; the outcome is `ok`, `cancelled`, or the name of the error.
        transport: sends the requests; None: an `AiohttpTransport` with the API key.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        timeout: float,
        request_timeout: float | None = None,
        retries: int = 5,
        affinity: bool = False,
        api_key: str | None = None,
        multimodal: MultimodalMode = "content_parts",
        geometry: Geometry | None = None,
        on_try: RequestObserver | None = None,
        transport: EngineTransport | None = None,
    ) -> None:
        self.model = model
        self.retry_count = 0
        self._on_try = on_try
        self._answer_timeout = timeout
        self._try_timeout = min(request_timeout or timeout, timeout)
        self._max_tries = retries + 1
        self._affinity = affinity
        self._router = Router(urls, affinity=affinity)
        self._transport = transport or AiohttpTransport(api_key)
        self._engine_sends_experts = False
        self._refuses_bans = False
        self._geometry = geometry if multimodal != "content_parts" else None
        self._seeds = SeedFilter(self._transport)
        self._checker = ReplicaChecker(self._transport, self._router, model, multimodal, self._geometry)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All engines, with their load and health."""
        return self._router.replicas

    @property
    def max_model_len(self) -> int | None:
        """The shortest context length that an engine reported, in tokens; None if no engine reported one."""
        return min((replica.max_model_len for replica in self.replicas if replica.max_model_len), default=None)

    async def check(self) -> None:
        """Check every engine, and eject those that are unavailable.

        Raises:
            EngineUnreachable, EngineTimeout, EngineUnavailable, EngineBroken: all engines are unavailable.
            EngineRefused, ModelNotServed: an engine does not answer as vLLM does, or does not serve the model.
        """
        unavailable: dict[Replica, EngineError] = {}

        async def check_one(replica: Replica) -> None:
            try:
                await self._checker.check(replica, min(self._answer_timeout, _STARTUP_CHECK_TIMEOUT))
            except (*_RETRYABLE_ERRORS, EngineBroken) as error:
                unavailable[replica] = error

        try:
            async with anyio.create_task_group() as group:
                for replica in self.replicas:
                    group.start_soon(check_one, replica)
        except BaseExceptionGroup as error_group:
            raise error_group.exceptions[0] from None
        if len(unavailable) == len(self.replicas):
            raise min(unavailable.values(), key=lambda error: not isinstance(error, _RETRYABLE_ERRORS))
        for replica in unavailable:
            self._router.eject(replica)

    async def wait_until_checked(self, on_wait: WaitObserver) -> None:
        """Check every engine. While all are unavailable, check again, with the retries and the time limit of a turn.

        `on_wait` is called with a text when such a wait begins, and when it ends.

        Raises:
            EngineError: the error of the last check; see `check`.
        """
        last_error: EngineError | None = None
        started_at = time.monotonic()
        with anyio.move_on_after(self._answer_timeout):
            for try_number in range(self._max_tries):
                if try_number:
                    await anyio.sleep(_retry_pause(try_number))
                try:
                    await self.check()
                except _RETRYABLE_ERRORS as error:
                    if last_error is None and self._max_tries > 1:
                        on_wait(
                            f"waiting, because no engine can be used yet. Up to {self._max_tries - 1} retries follow "
                            f"(engine.retries) within {self._answer_timeout:g} s (engine.timeout). The error: {error}"
                        )
                    last_error = error
                else:
                    if last_error is not None:
                        on_wait(f"continues after {time.monotonic() - started_at:.0f} s")
                    return
        raise last_error or EngineTimeout(f"no engine answered within {self._answer_timeout:g} s (engine.timeout).")

    async def generate(self, request: GenerateRequest) -> Generation:
        """Send a request, and return the engine's answer after all checks.

        Raises:
            EngineError: no try succeeded, or an error is final; see `rollout.engine.errors`.
        """
        self._router.require_version(request.required_version)
        last_error: EngineError | None = None
        failed_replicas: list[Replica] = []
        refusals = PauseRefusals()
        with anyio.move_on_after(self._answer_timeout) as deadline:
            for try_number in range(self._max_tries):
                refusals = PauseRefusals()
                if try_number:
                    self.retry_count += 1
                    request.on_retry()
                    await anyio.sleep(_retry_pause(try_number))
                try:
                    return await self._generate_when_resumed(request, try_number, failed_replicas, refusals)
                except (EngineAborted, *_RETRYABLE_ERRORS) as error:
                    # An engine that aborted the request for new weights did not fail, so it may be the next one, too.
                    last_error = error
        if deadline.cancelled_caught and refusals:
            raise refusals.timeout_error(request.request_id, self._answer_timeout)
        raise last_error or EngineTimeout(
            f"{request.request_id}: no answer within {self._answer_timeout:g} s (engine.timeout)."
        )

    async def _generate_when_resumed(
        self, request: GenerateRequest, try_number: int, failed_replicas: list[Replica], refusals: PauseRefusals
    ) -> Generation:
        """Send the request to the best engine. While all are paused, ask again; add an engine that fails to the list.

        The caller sets the deadline. An engine that refused the request does not work on it, so the request keeps its
        id.
        """
        while True:
            replica = self._router.choose(session_id=request.session_id, avoid=failed_replicas)
            try:
                return await self._generate_once(replica, request, try_number)
            except EnginePaused:
                self._router.mark_paused(replica)
                refusals.record(replica.url)
                if self._router.all_are_paused(avoid=failed_replicas):
                    await anyio.sleep(refusals.next_wait())
            except (EngineBroken, EngineMisconfigured):
                # An engine that fails at once always has the least load. So it must be ejected.
                self._router.record_failure(replica)
                raise
            except _RETRYABLE_ERRORS:
                self._router.record_failure(replica)
                failed_replicas.append(replica)
                raise

    async def _generate_once(self, replica: Replica, request: GenerateRequest, try_number: int) -> Generation:
        """Send the request once; return an answer that is complete and was sampled by the required weights."""
        if self._refuses_bans:
            request = replace(request, banned_ids=())
        try:
            response_body = await self._post_generate(replica, request, try_number)
        except LogitBiasRefused as refusal:
            if not request.banned_ids:
                raise
            request = replace(request, banned_ids=())
            response_body = await self._post_generate(replica, request, try_number)
            self._stop_banning(replica, refusal)
        self._router.record_answer(replica)
        generation = decode_response(response_body, request)
        self._engine_sends_experts |= generation.routed_experts is not None
        if generation.finish_reason is FinishReason.ABORT:
            raise EngineAborted(
                f"{request.request_id}: {replica.url} aborted the request before its answer was complete."
            )
        for span in generation.versions:
            replica.version = span.version
            if request.required_version is not None and not version_satisfies(span.version, request.required_version):
                self._router.mark_behind(replica)
                raise EngineBehind(
                    f"{request.request_id}: {replica.url} answered with the weights {span.version!r}, but the trainer "
                    f"has pushed {request.required_version!r}. Was the engine restarted?"
                )
        return generation

    def _stop_banning(self, replica: Replica, refusal: LogitBiasRefused) -> None:
        """Ban no tokens at any engine from now on, so that all turns of a rollout are sampled in the same way."""
        if not self._refuses_bans:
            self._refuses_bans = True
            log.warning(
                "no tokens are banned from now on: an engine refuses logit_bias",
                engine=replica.url,
                because=str(refusal),
            )

    async def _post_generate(self, replica: Replica, request: GenerateRequest, try_number: int) -> bytes:
        # Each try has its own id, because the engine may still work on the previous try when the next one arrives.
        request_id = f"{request.request_id}.{try_number}"
        # An older engine does not know this key, so the key is sent only after an engine has sent experts.
        experts_start = request.experts_start if self._engine_sends_experts else None
        if replica.is_unavailable:
            await self._recheck_replica(replica)
        request = await self._remove_unsafe_seed(replica, request)
        geometry = self._geometry if replica.resolves_references else None
        body = encode_request(request, self.model, request_id, experts_start=experts_start, geometry=geometry)
        try:
            with self._track_request(replica):
                with anyio.move_on_after(self._try_timeout):
                    return await self._transport.post(
                        f"{replica.url}/inference/v1/generate",
                        body,
                        session_id=request.session_id if self._affinity else None,
                    )
                raise EngineTimeout(
                    f"{replica.url} did not answer {request_id} within {self._try_timeout:g} s "
                    "(engine.request_timeout)."
                )
        except (anyio.get_cancelled_exc_class(), EngineTimeout):
            await self._abort(replica, request_id)
            raise

    async def _remove_unsafe_seed(self, replica: Replica, request: GenerateRequest) -> GenerateRequest:
        # A request that waits here counts as in flight. Otherwise, all first requests would choose the same engine.
        replica.in_flight += 1
        try:
            return await self._seeds.remove_unsafe_seed(replica.url, request)
        finally:
            replica.in_flight -= 1

    @contextmanager
    def _track_request(self, replica: Replica) -> Iterator[None]:
        """Count a request as in flight at an engine, and report the try to `on_try` when it ends."""
        started_at, outcome = time.monotonic(), "ok"
        replica.in_flight += 1
        try:
            yield
        except EngineError as error:
            outcome = type(error).__name__
            raise
        except anyio.get_cancelled_exc_class():
            outcome = "cancelled"
            raise
        finally:
            replica.in_flight -= 1
            if self._on_try is not None:
                self._on_try(replica.url, outcome, time.monotonic() - started_at)

    async def _abort(self, replica: Replica, request_id: str) -> None:
        """Abort a request on the server. It is not enough to close our connection: a proxy may keep its own open."""
        body = orjson.dumps({"request_ids": [f"generate-tokens-{request_id}"]})
        with anyio.CancelScope(shield=True), anyio.move_on_after(_ABORT_TIMEOUT):
            try:
                await self._transport.post(f"{replica.url}/inference/v1/abort_requests", body)
            except EngineError as error:
                log.debug("abort failed", request=request_id, error=str(error))

    async def _recheck_replica(self, replica: Replica) -> None:
        try:
            await self._checker.check(replica, _RECHECK_TIMEOUT)
        except EngineError as error:
            raise EngineUnavailable(f"{replica.url} was ejected and still cannot be used: {error}") from error
        self._seeds.forget(replica.url)
        self._router.mark_available(replica)


def _retry_pause(try_number: int) -> float:
    return jittered_pause(_FIRST_RETRY_PAUSE_SECONDS, _MAX_RETRY_PAUSE_SECONDS, doublings=try_number - 1)
