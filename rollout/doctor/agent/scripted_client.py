"""Gives the answers of the script in the place of an engine, without a server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from renderers_adapter.pool import RendererPool
from renderers_adapter.tokens import as_logical_ids
from rollout.doctor.agent.answer_tokens import sample_tokens
from rollout.doctor.agent.script import AgentScript
from rollout.engine.client import EngineClient
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.records.evidence import answer_digest, prompt_digest
from rollout.records.messages import FinishReason, Message

CONTEXT = 1 << 20
"""The context of the scripted policy, in tokens. It is long, so that the script answers every program."""
_NO_ENGINE = "http://127.0.0.1:9"
"""The client needs an address, but sends nothing to it."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What the script sees of a turn."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None


_question: ContextVar[_Question] = ContextVar("the turn that is being played")


@contextmanager
def question_of_turn(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Iterator[None]:
    """Set the conversation that the requests in this context ask the script about."""
    token = _question.set(_Question(messages, tools))
    try:
        yield
    finally:
        _question.reset(token)


class ScriptedClient(EngineClient):
    """Answers with the script. The log-prob of each token is 0."""

    def __init__(self, model: str, script: AgentScript, renderers: RendererPool, timeout: float) -> None:
        super().__init__([_NO_ENGINE], model, timeout=timeout)
        self._script = script
        self._renderers = renderers

    @property
    def max_model_len(self) -> int | None:
        """The limit for a prompt and its answer."""
        return CONTEXT

    async def generate(self, request: GenerateRequest) -> Generation:
        """Return the script's answer; see `EngineClient.generate`."""
        question = _question.get()
        answer = self._script.answer(question.messages, question.tools)
        token_ids = as_logical_ids(await sample_tokens(answer, question.tools, self._renderers))
        logprobs = np.zeros(len(token_ids), np.float32)
        return Generation(
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=FinishReason.STOP,
            stop_reason=None,
            versions=(),
            prompt_digest=prompt_digest(request.expanded_prompt, [ref.hash for ref in request.images]),
            answer_digest=answer_digest(token_ids, logprobs),
            cached_tokens=None,
            routed_experts=None,
            sampling_mask=None,
            banned_ids=request.banned_ids,
        )
