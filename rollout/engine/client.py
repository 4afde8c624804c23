"""The client of one or several engines: deadlines, retries of what may be retried, and typed errors.

A request that could not be delivered, was answered 429 or 502-504, or timed out goes out again after a growing,
jittered pause, to another engine where there is one. So does one that an engine gave up for new weights, or answered
with older weights than it must. Everything else is final. However often a request went out, its caller gets one answer;
a try that nobody waits for any more is aborted on the server.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
import orjson
import structlog

from renderers_adapter.geometry import Geometry
from rollout.config.sections import Multimodal
from rollout.engine.errors import (
    EngineAborted,
    EngineBehind,
    EngineBroken,
    EngineError,
    EngineMisconfigured,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreachable,
    ModelNotServed,
)
from rollout.engine.features import require_same_layout
from rollout.engine.http import EngineHttp
from rollout.engine.protocol import Generation, decode_response, encode_request
from rollout.engine.request import GenerateRequest
from rollout.engine.routing import Engine, Router, doubled
from rollout.engine.weight_updates import state_of
from rollout.records.versions import satisfies

log = structlog.get_logger()

_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_LOOK_TIMEOUT = 5.0
_CHECK_TIMEOUT = 30.0
_ABORT_TIMEOUT = 2.0
_RETRIED = (EngineUnreachable, EngineUnavailable, EngineTimeout)

Observe = Callable[[str, str, float], None]
"""Is told of a try: at which engine, how it ended, and after how many seconds."""


class EngineClient:
    """Speaks to the engines that serve one model. Use it as an async context manager.

    Args:
        timeout: seconds for one turn, all of its tries included.
        request_timeout: seconds for one try; none: as long as the turn has.
        retries: how often a turn is tried again.
        affinity: keep a session on one engine, for its prefix cache; nothing depends on it.
        api_key: sent as a bearer token.
        multimodal: how images go out; `auto` asks each engine whether it resolves references.
        geometry: that of the model's images; none: it takes none.
        observe: is told of every try; it ended `ok`, `cancelled`, or with the error of this name.
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
        multimodal: Multimodal = "content_parts",
        geometry: Geometry | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.model = model
        self.retried = 0
        self._observe = observe
        self._timeout = timeout
        self._request_timeout = min(request_timeout or timeout, timeout)
        self._tries = retries + 1
        self._affinity = affinity
        self._router = Router(urls, affinity=affinity)
        self._http = EngineHttp(api_key)
        self._experts = False
        self._multimodal = multimodal
        self._geometry = geometry if multimodal != "content_parts" else None

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Every engine, with its load and health."""
        return self._router.engines

    @property
    def max_model_len(self) -> int | None:
        """The shortest context among the engines, as far as they told it."""
        return min((engine.max_model_len for engine in self.engines if engine.max_model_len), default=None)

    async def check(self) -> None:
        """Look at every engine. One that is away is left out until it returns, unless all of them are.

        Raises:
            EngineUnreachable, EngineTimeout, EngineUnavailable: no engine answers.
            EngineRefused, ModelNotServed: an engine does not answer as vLLM does, or serves other models.
        """
        absent: dict[Engine, EngineError] = {}

        async def look(engine: Engine) -> None:
            try:
                await self._look(engine, min(self._timeout, _CHECK_TIMEOUT))
            except (*_RETRIED, EngineBroken) as error:
                absent[engine] = error

        try:
            async with anyio.create_task_group() as group:
                for engine in self.engines:
                    group.start_soon(look, engine)
        except BaseExceptionGroup as found:
            raise found.exceptions[0] from None
        if len(absent) == len(self.engines):
            raise next(iter(absent.values()))
        for engine in absent:
            self._router.eject(engine)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion.

        Raises:
            EngineError: see `rollout.engine.errors`; nothing that is returned needs checking again.
        """
        self._router.require(request.required)
        last: EngineError | None = None
        tried: list[Engine] = []
        with anyio.move_on_after(self._timeout):
            for number in range(self._tries):
                if number:
                    self.retried += 1
                    await anyio.sleep(_pause(number))
                engine = self._router.choose(session=request.session, avoid=tried)
                try:
                    return await self._answer(engine, request, number)
                except (EngineBroken, EngineMisconfigured):
                    # Whoever refuses at once is always the least loaded, and would draw every other rollout.
                    self._router.failed(engine)
                    raise
                except EngineAborted as error:
                    last = error  # not its fault: new weights came, and the turn is begun anew, there or elsewhere
                except _RETRIED as error:
                    self._router.failed(engine)
                    tried.append(engine)
                    last = error
        raise last or EngineTimeout(f"{request.request_id}: no answer within {self._timeout:g} s (engine.timeout).")

    async def _answer(self, engine: Engine, request: GenerateRequest, number: int) -> Generation:
        """An answer that is whole, and of weights that may answer."""
        answer = await self._try(engine, request, number)
        self._router.answered(engine)
        generation = decode_response(answer, request)
        self._experts |= generation.routed_experts is not None
        if generation.finish_reason == "abort":
            raise EngineAborted(f"{request.request_id}: {engine.url} gave up the request in the middle of its answer.")
        for span in generation.versions:
            engine.version = span.version
            if request.required is not None and not satisfies(span.version, request.required):
                self._router.behind(engine)
                raise EngineBehind(
                    f"{request.request_id}: {engine.url} answered with the weights {span.version!r}, and "
                    f"{request.required!r} had been pushed before. Was it started anew?"
                )
        return generation

    async def _try(self, engine: Engine, request: GenerateRequest, number: int) -> bytes:
        # An engine may still be busy with the last try when the next one reaches it, so each has its own id.
        request_id = f"{request.request_id}.{number}"
        # Only an engine that sends experts is asked to leave out those that earlier turns brought.
        experts_from = request.experts_from if self._experts else None
        if engine.away:
            await self._look_again(engine)
        geometry = self._geometry if engine.resolves_references else None
        body = encode_request(request, self.model, request_id, experts_from=experts_from, geometry=geometry)
        try:
            with self._observed(engine):
                with anyio.move_on_after(self._request_timeout):
                    session = request.session if self._affinity else None
                    return await self._http.post(f"{engine.url}/inference/v1/generate", body, session=session)
                raise EngineTimeout(
                    f"{engine.url} did not answer {request_id} within {self._request_timeout:g} s "
                    "(engine.request_timeout)."
                )
        except (anyio.get_cancelled_exc_class(), EngineTimeout):
            await self._abort(engine, request_id)
            raise

    @contextmanager
    def _observed(self, engine: Engine) -> Iterator[None]:
        """While an engine is asked."""
        began, outcome = time.monotonic(), "ok"
        engine.in_flight += 1
        try:
            yield
        except EngineError as error:
            outcome = type(error).__name__
            raise
        except anyio.get_cancelled_exc_class():
            outcome = "cancelled"
            raise
        finally:
            engine.in_flight -= 1
            if self._observe is not None:
                self._observe(engine.url, outcome, time.monotonic() - began)

    async def _abort(self, engine: Engine, request_id: str) -> None:
        """Closing the connection tells vLLM itself, but no proxy before it; this reaches the engine through both."""
        body = orjson.dumps({"request_ids": [f"generate-tokens-{request_id}"]})
        with anyio.CancelScope(shield=True), anyio.move_on_after(_ABORT_TIMEOUT):
            try:
                await self._http.post(f"{engine.url}/inference/v1/abort_requests", body)
            except EngineError as error:
                log.debug("abort failed", request=request_id, error=str(error))

    async def _look_again(self, engine: Engine) -> None:
        try:
            await self._look(engine, _LOOK_TIMEOUT)
        except EngineError as error:
            raise EngineUnavailable(f"{engine.url} was ejected and is not back: {error}") from error
        self._router.returned(engine)

    async def _look(self, engine: Engine, timeout: float) -> None:
        """Learn whether it serves the model, has the right weights, how long a context, and how it takes images."""
        with anyio.move_on_after(timeout):
            answer = await self._http.get(f"{engine.url}/v1/models")
            engine.max_model_len = _served(engine.url, answer, self.model)
            if self._router.required is not None:
                engine.version = await self._version(engine.url)
            if self._geometry is not None:
                engine.resolves_references = await self._resolves(engine.url, self._geometry)
            return
        raise EngineTimeout(f"{engine.url} did not tell its models and how it takes images within {timeout:g} s.")

    async def _version(self, url: str) -> str:
        """Which weights it has, where they are the ones that it must have."""
        version = (await state_of(self._http, url)).version
        if not self._router.suffices(version):
            raise EngineBehind(f"{url} has the weights {version!r}; {self._router.required!r} were pushed.")
        return version

    async def _resolves(self, url: str, geometry: Geometry) -> bool:
        try:
            require_same_layout(await self._told_of_references(url), geometry)
        except EngineRefused as why:
            if self._multimodal == "mmraw":
                raise EngineRefused(
                    f"engine.multimodal is mmraw, and {url} does not resolve references: {why}. Start it with our "
                    "plugin (VLLM_PLUGINS=mmraw), or set engine.multimodal: auto."
                ) from why
            log.info("images go out as content_parts", engine=url, because=str(why))
            return False
        log.info("images go out as references", engine=url, fingerprint=geometry.fingerprint)
        return True

    async def _told_of_references(self, url: str) -> bytes:
        try:
            return await self._http.get(f"{url}/mmraw/version")
        except EngineRefused as error:
            raise EngineRefused("it runs without our plugin") from error


def _served(url: str, answer: bytes, model: str) -> int | None:
    try:
        served = {entry["id"]: entry.get("max_model_len") for entry in orjson.loads(answer)["data"]}
    except (ValueError, KeyError, TypeError):
        raise EngineRefused(f"{url}/v1/models did not list models; is this a vLLM server?") from None
    if model not in served:
        raise ModelNotServed(
            f"{url} does not serve the model {model!r}; it serves {', '.join(sorted(served)) or 'none'}. "
            "Set model.name to one of these."
        )
    length = served[model]
    return int(length) if length else None


def _pause(number: int) -> float:
    return doubled(_PAUSE, _LONGEST_PAUSE, times=number - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
