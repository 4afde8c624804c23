"""The client of a judge: it shares calls between callers, caches answers, and repeats failed requests."""

import asyncio
import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType, UnionType
from typing import Any, Self

import anyio
import structlog

from rollout.engine.routing import exponential_pause
from rollout.environments.base import Retry
from rollout.errors import ConfigurationError
from rollout.judge.address import JudgeAddress
from rollout.judge.answers import AnswerCache
from rollout.judge.errors import JudgeClosed, JudgeRefused, TryFailed
from rollout.judge.http import JudgeHttp
from rollout.judge.question import encode_question
from rollout.records.messages import Message
from rollout.records.wrong_types import describe_wrong_type, show_value

log = structlog.get_logger()

_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 8.0
_MAX_RETRY_AFTER_SECONDS = 30.0
_CLOSE_TIMEOUT = 5.0
_MAX_QUOTED_CHARS = 100


@dataclass(frozen=True, slots=True)
class _Answer:
    """The text of an answer, and the number of tries that it took."""

    text: str
    tries: int


@dataclass(slots=True, eq=False)
class _Flight:
    """A running call to the judge.

    Attributes:
        task: the task that returns the answer or the error.
        deadline: when the call ends at the latest, on the clock of the event loop.
        waiting: how many callers wait for the answer.
    """

    task: "asyncio.Task[_Answer | Retry | JudgeRefused]"
    deadline: float
    waiting: int = 0


class Judge:
    """Asks a model behind an OpenAI-compatible chat endpoint. Use it as an async context manager, or call `close`.

    Make one judge for each worker process, in `Environment.shared`, because two judges share no limits and no answers.

    - One try takes at most `timeout` seconds. A whole call takes at most `timeout` × (`max_tries` + 1) seconds. This
      includes pauses, and the time in which the call waits for other calls.
    - A question is sent again after a broken connection, a try that took too long, or the status 408, 429 or 5xx. It is
      not sent again after another 4xx status or a redirect.
    - A question is also sent again if its answer cannot be used. This is so if the answer is not a chat completion, has
      no text, is compressed, has more than 4 MiB, or is refused by the caller's `accept`. It is also so if its
      `finish_reason` is `content_filter`, `tool_calls`, `function_call`, `abort` or `error`.
    - An answer that was cut off (`finish_reason: length`) is used only if the caller set `max_tokens` or
      `max_completion_tokens`.
    - The pauses between tries grow from 0.25 to 8 seconds. A 429 or 503 answer can ask for a longer pause in its header
      Retry-After, up to 30 seconds.
    - Up to `cache_size` answers are cached. If several callers ask the same question, also at the same time, it costs
      one call and they get the same answer. To get another answer, use another `seed`.
    - Proxies from environment variables (HTTP_PROXY and others) are not used, because a judge may run on this machine.

    Args:
        base_url: the part of the URL before `/chat/completions`, such as `http://127.0.0.1:8000/v1`. A user and a
            password in it are sent, but no error or log shows them.
        model: the name by which the judge knows the model.
        api_key: the key, sent as a bearer token without the white space around it; no error or log shows it.
        timeout: the time limit for one try, in seconds.
        max_tries: the limit for the number of times that a question is sent.
        max_concurrent: the limit for requests at the same time; further requests wait.
        cache_size: the limit for cached answers; 0 caches none.

    Raises:
        ConfigurationError: an argument is not valid. The error names the argument, and contains no secret.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_tries: int = 3,
        max_concurrent: int = 16,
        cache_size: int = 4096,
    ) -> None:
        self._address = JudgeAddress.parse(base_url, api_key)
        _require_name(model)
        if not _is_number(timeout, int | float) or not 0 < timeout <= sys.float_info.max:
            raise ConfigurationError(
                f"Judge: timeout is {show_value(timeout)}; expected a finite number of seconds above 0."
            )
        for name, number, least in (
            ("max_tries", max_tries, 1),
            ("max_concurrent", max_concurrent, 1),
            ("cache_size", cache_size, 0),
        ):
            if not _is_number(number, int) or number < least:
                raise ConfigurationError(
                    f"Judge: {name} is {show_value(number)}; expected a whole number of at least {least}."
                )
        self._model = model
        self._timeout = float(timeout)
        self._max_tries = max_tries
        self._max_concurrent = max_concurrent
        self._slots = asyncio.Semaphore(max_concurrent)
        self._answers = AnswerCache(cache_size)
        self._http = JudgeHttp(self._address, max_connections=max_concurrent)
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        # Several rollouts may share a call, so its log lines must not name the rollout that started it.
        self._context = copy_context()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel all running calls, and close all connections. Callers that wait for an answer get `JudgeClosed`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._http.close()

    async def ask(
        self,
        question: str | Sequence[Message],
        /,
        *,
        accept: Callable[[str], bool] | None = None,
        **sampling: Any,
    ) -> str:
        """Ask a question, and return the text of the answer, which is never empty.

        Callers with the same question share a call and its answer, and each checks the answer with its own `accept`. If
        an `accept` refuses the answer, its caller asks again with the tries that it has left. Other callers whose
        `accept` refuses the answer share this new call. A shared answer counts as a try of each caller; a cached answer
        does not.

        Args:
            question: the text of one user message, or a list of messages. Images in them are Pillow images, bytes,
                images of the run, or URLs. The messages are not changed.
            accept: a function that gets the text of an answer and returns whether the answer can be used, such as
                `str.isdecimal`. A refused answer is not cached, and the question is sent again. If `accept` raises an
                exception, only this caller gets it.
            sampling: further keys of the request, such as `temperature`; a key with the value None is left out.

        Raises:
            Retry: no try gave an answer that `accept` takes. The error names the judge, the number of tries and the
                reason.
            JudgeClosed: the judge was closed; this is also a `Retry`.
            JudgeRefused: the question cannot be sent, or the judge refused it and would refuse it again.
            ImageError: an image in the question cannot be used.
        """
        _require_function(accept)
        body = await encode_question(self._model, question, sampling)
        takes_cut_answer = any(sampling.get(key) is not None for key in ("max_tokens", "max_completion_tokens"))
        key = hashlib.sha256(body).digest()
        deadline = anyio.current_time() + self._timeout * (self._max_tries + 1)
        tries = 0
        failure = TryFailed(f"the question waited too long for other calls (max_concurrent: {self._max_concurrent})")
        while True:
            if self._closed:
                raise self._closed_error()
            if (answer := self._answers.get(key)) is None:
                if tries >= self._max_tries:
                    raise self._no_answer_error(tries, failure)
                flight = self._flights.get(key)
                # A call that another caller started later may last longer than this caller can wait.
                is_shared = flight is not None and not flight.task.done() and flight.deadline <= deadline
                if flight is None or not is_shared:
                    call = self._call(key, body, takes_cut_answer, deadline, tries, failure)
                    flight = self._start_call(key, call, deadline)
                found = await self._wait_for_answer(key, flight)
                answer, tries = found.text, tries + 1 if is_shared else found.tries
            if accept is None or accept(answer):
                return answer
            self._answers.discard(key, answer)
            failure = TryFailed(f"accept refused the answer {self._quote(answer)}")

    def _start_call(
        self, key: bytes, call: Coroutine[Any, Any, _Answer | Retry | JudgeRefused], deadline: float
    ) -> _Flight:
        flight = _Flight(asyncio.get_running_loop().create_task(call, context=self._context.copy()), deadline)
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(partial(self._end_call, key, flight))
        return flight

    def _end_call(self, key: bytes, flight: _Flight, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        self._forget_flight(key, flight)

    def _forget_flight(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _wait_for_answer(self, key: bytes, flight: _Flight) -> _Answer:
        flight.waiting += 1
        try:
            # Unlike `await task`, this does not cancel the task when one of its callers is cancelled.
            await asyncio.wait([flight.task])
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._forget_flight(key, flight)
        if flight.task.cancelled():
            raise self._closed_error()
        outcome = flight.task.result()
        if isinstance(outcome, _Answer):
            return outcome
        # Each caller gets its own exception. One exception that several tasks raise would collect all their tracebacks.
        raise type(outcome)(*outcome.args)

    async def _call(
        self, key: bytes, body: bytes, takes_cut_answer: bool, deadline: float, tries: int, failure: TryFailed
    ) -> _Answer | Retry | JudgeRefused:
        """Return the answer after it was cached, or an error. `failure` is the error of the latest earlier try."""
        with anyio.CancelScope(deadline=deadline):
            while tries < self._max_tries:
                if tries:
                    pause = _pause_seconds(tries, failure)
                    if anyio.current_time() + pause >= deadline:
                        break
                    log.info("a question is sent again", judge=self._address.base_url, because=failure.reason)
                    await anyio.sleep(pause)
                async with self._slots:
                    tries += 1
                    if tries == 1:
                        total_seconds = self._timeout * (self._max_tries + 1)
                        failure = TryFailed(f"the question waited for other calls; all of it took {total_seconds:g} s")
                    try:
                        answer = await self._try_once(body, takes_cut_answer)
                    except TryFailed as error:
                        failure = error
                    except JudgeRefused as refusal:
                        return refusal
                    else:
                        self._answers.add(key, answer)
                        return _Answer(answer, tries)
        return self._no_answer_error(tries, failure)

    async def _try_once(self, body: bytes, takes_cut_answer: bool) -> str:
        with anyio.move_on_after(self._timeout):
            return await self._http.ask(body, takes_cut_answer=takes_cut_answer)
        raise TryFailed(f"a try took longer than {self._timeout:g} s (timeout)")

    def _no_answer_error(self, tries: int, failure: TryFailed) -> Retry:
        return Retry(
            f"the judge at {self._address.base_url} gave no answer from {self._model!r} in {tries} "
            f"{'try' if tries == 1 else 'tries'}: {failure.reason}"
        )

    def _quote(self, answer: str) -> str:
        shown = self._address.excerpt(answer)
        return repr(shown if len(shown) <= _MAX_QUOTED_CHARS else f"{shown[:_MAX_QUOTED_CHARS]}…")

    def _closed_error(self) -> JudgeClosed:
        return JudgeClosed(
            f"the judge at {self._address.base_url} was closed before it answered; close it only after the last "
            "rollout, for example at the end of `Environment.shared`."
        )


def _require_name(model: object) -> None:
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(
            f"Judge: model is {show_value(model)}; expected a string, the name by which the judge knows the model."
        )


def _is_number(value: object, kinds: type | UnionType) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _require_function(accept: object) -> None:
    if accept is not None and (not callable(accept) or inspect.iscoroutinefunction(accept)):
        found = "a coroutine function" if callable(accept) else describe_wrong_type(accept)
        raise JudgeRefused(f"ask(accept=…) is {found}; expected a plain function that gets the answer's text.")


def _pause_seconds(tries: int, failure: TryFailed) -> float:
    pause = exponential_pause(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS, doublings=tries - 1)
    jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
    return max(jittered, min(failure.retry_after, _MAX_RETRY_AFTER_SECONDS))
