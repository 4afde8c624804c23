"""Continuous batching: every request in flight takes part in the next step, and new requests join as they fit.

A step decodes one token for each request whose prompt is computed, and computes the prompts of new requests. A request
that has ended or was aborted is removed before the next step.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
import torch

from rollout.serving.engine import Answer, SampledToken
from rollout.serving.gate import PauseGate
from rollout.serving.network.decode_batch import DecodeBatch
from rollout.serving.network.model import Network
from rollout.serving.network.prompts import NetworkPrompt
from rollout.serving.network.sampling import sample_tokens
from rollout.serving.protocol import RequestRefused

log = structlog.get_logger()

_MAX_PREFILL_TOKENS = 16384
"""The limit for prompt tokens in one step, including padding. A longer prompt is computed alone."""


@dataclass(slots=True, eq=False)
class _RunningRequest:
    """A request in flight."""

    prompt: NetworkPrompt
    answer: Answer
    finished: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def last_token_id(self) -> int:
        return self.answer.tokens[-1].token_id

    def add_token(self, token: SampledToken, version: str) -> None:
        if self.finished.done():
            return
        self.answer.add_token(token, version)
        if self.answer.finished:
            self.finished.set_result(None)

    def fail(self, error: RequestRefused) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)


@dataclass(slots=True, eq=False)
class _DecodingRequests:
    """The requests whose prompts are computed; each has a row of the decode batch."""

    requests: list[_RunningRequest]
    decode_batch: DecodeBatch

    def keep_only(self, remaining: list[_RunningRequest]) -> "_DecodingRequests | None":
        """Return an object with only the remaining requests, or None if there are none."""
        if not remaining:
            return None
        kept = set(remaining)
        self.decode_batch.keep_rows([row for row, request in enumerate(self.requests) if request in kept])
        return _DecodingRequests(remaining, self.decode_batch)

    def concatenate(self, other: "_DecodingRequests") -> "_DecodingRequests":
        """Return the requests and rows of this object, then those of `other`."""
        return _DecodingRequests([*self.requests, *other.requests], self.decode_batch.concatenate(other.decode_batch))


class Batcher:
    """Runs steps while requests are in flight. Use it in one event loop; the network computes in another thread."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waiting: list[_RunningRequest] = []
        self._decoding: _DecodingRequests | None = None
        self._step_task: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    def close(self) -> None:
        """Stop: no further step starts."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def generate(self, prompt: NetworkPrompt, answer: Answer, gate: PauseGate) -> None:
        """Generate the answer in the next steps; return when it is finished. To abort it, cancel this call."""
        request = _RunningRequest(prompt, answer)
        self._waiting.append(request)
        if self._step_task is None:
            self._step_task = asyncio.create_task(self._run_steps(gate))
        await request.finished

    async def _run_steps(self, gate: PauseGate) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._decoding:
            async with gate.step():
                continuing, starting = self._select_participants()
                participants = [*continuing, *starting]
                if not participants:
                    self._decoding = None
                    continue
                try:
                    tokens = await loop.run_in_executor(self._executor, self._compute_step, continuing, starting)
                except Exception as error:  # an error of the network fails all requests of this step
                    log.error("a step of the network failed", requests=len(participants), exc_info=error)
                    self._decoding = None
                    for request in participants:
                        request.fail(RequestRefused(f"The network failed: {type(error).__name__}: {error}", status=500))
                    continue
                for request, token in zip(participants, tokens, strict=True):
                    request.add_token(token, gate.version)
        # There is no await between the check of the loop and this line, so every later request starts a new task.
        self._step_task = None

    def _select_participants(self) -> tuple[list[_RunningRequest], list[_RunningRequest]]:
        """Return the requests of the next step: those that decode another token, and those whose prompt is computed."""
        decoding_requests = self._decoding.requests if self._decoding is not None else ()
        self._waiting = [request for request in self._waiting if not request.finished.done()]
        starting = self._waiting[: _count_fitting([len(request.prompt.token_ids) for request in self._waiting])]
        self._waiting = self._waiting[len(starting) :]
        return [request for request in decoding_requests if not request.finished.done()], starting

    def _compute_step(
        self, continuing: list[_RunningRequest], starting: Sequence[_RunningRequest]
    ) -> list[SampledToken]:
        """Return a token for each continuing request, then for each starting one. Runs in the network's thread."""
        with torch.inference_mode():
            self._decoding = None if self._decoding is None else self._decoding.keep_only(continuing)
            return [*self._decode_continuing(), *self._prefill_starting(starting)]

    def _decode_continuing(self) -> list[SampledToken]:
        if self._decoding is None:
            return []
        requests = self._decoding.requests
        logits = self._network.decode(self._decoding.decode_batch, [request.last_token_id for request in requests])
        return sample_tokens(logits, [request.prompt for request in requests])

    def _prefill_starting(self, starting: Sequence[_RunningRequest]) -> list[SampledToken]:
        if not starting:
            return []
        prompts = [request.prompt for request in starting]
        logits, decode_batch = self._network.prefill(prompts)
        started = _DecodingRequests(list(starting), decode_batch)
        self._decoding = started if self._decoding is None else self._decoding.concatenate(started)
        return sample_tokens(logits, prompts)


def _count_fitting(lengths: Sequence[int]) -> int:
    """Return how many prompts, counted from the first one, are computed together."""
    longest = 0
    for count, length in enumerate(lengths):
        longest = max(longest, length)
        if count and longest * (count + 1) > _MAX_PREFILL_TOKENS:
            return count
    return len(lengths)
