"""Lets a server with random weights sample an answer that a test has planned."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from renderers_adapter.tokens import ExpandedIds, LogicalIds
from rollout.engine.client import EngineClient
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.records.evidence import answer_digest
from rollout.records.messages import FinishReason
from rollout.session.policy import PolicyClient
from tests.needs.vllm.conftest import RecordingClient


class SpellingClient(RecordingClient):
    """Lets the server sample planned answers: one request for each token, which is the only one that is allowed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.planned: Sequence[int] = ()

    async def generate(self, request: GenerateRequest) -> Generation:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sample(request, at)) for at in range(len(self.planned))]
        parts = [task.result() for task in tasks]
        logprobs = np.concatenate([part.logprobs for part in parts])
        tokens = LogicalIds(np.concatenate([part.token_ids for part in parts]))
        generation = replace(
            parts[0],
            token_ids=tokens,
            logprobs=logprobs,
            finish_reason=FinishReason.STOP,
            versions=(replace(parts[0].versions[0], end=len(tokens)),),
            answer_digest=answer_digest(tokens, logprobs),
        )
        self.turns.append((request, generation))
        return generation

    async def _sample(self, request: GenerateRequest, at: int) -> Generation:
        before = np.array(self.planned[:at], np.int32)
        wanted = replace(
            request,
            request_id=f"{request.request_id}-{at}",
            prompt=LogicalIds(np.concatenate([request.prompt, before])),
            expanded_prompt=ExpandedIds(np.concatenate([request.expanded_prompt, before])),
            sampling={"temperature": 0.0, "max_tokens": 1, "allowed_token_ids": [self.planned[at]]},
        )
        return await EngineClient.generate(self, wanted)


def say(policy: PolicyClient, text: str, *, end: str = "<|im_end|>") -> None:
    """Make the policy say a text, and then an end token, in its next answers."""
    assert isinstance(policy.engine, SpellingClient)
    tokenizer = policy.renderers.tokenizer
    policy.engine.planned = [*tokenizer.encode(text), tokenizer.token_id(end)]
