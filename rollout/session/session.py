"""One rollout's conversation with the policy, in seven steps.

1 images     prepared in place: offloaded or inlined, or refused
2 trace      which prefix is already known?
3 renderer   bridge the tail, or render all; every image of the path, prior and new
4 engine     one request, answered with tokens, log-probs and versions
5 renderer   completion to assistant message and tool calls
6 trace      commit: only what this turn added
7 steps      one record, on its way to the trainer
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import Parsed
from renderers_adapter.tokens import TokenRun, join
from rollout.engine.client import EngineClient
from rollout.engine.errors import ContextExhausted, EngineAborted, UnusableCompletion
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.environments.base import Reply
from rollout.images import ImageError, ImagePolicy, prepare_images_async
from rollout.metrics.worker import WorkerMetrics
from rollout.records.messages import (
    CanonicalMessage,
    Message,
    MessageError,
    MessageMemory,
    ToolCall,
    canonicalise,
    tools_identity,
)
from rollout.records.stream import RolloutStream
from rollout.records.wire import NodeRecord, Step
from rollout.session.image_table import ImageTable
from rollout.session.prompt import Prompt, Prompter
from rollout.session.trace import ROOT, Commit, Draft, Trace


@dataclass(slots=True)
class PolicyVersion:
    """The trainer's version, as far as this process knows it; it rises while rollouts go on.

    `required` is set where the trainer pushed it: engines with older weights are not used.
    """

    current: str = "0"
    required: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session needs to talk to the policy; shared by all sessions of a worker."""

    renderers: RendererPool
    engine: EngineClient
    images: ImagePolicy
    sampling: Mapping[str, Any]
    version: PolicyVersion = field(default_factory=PolicyVersion)
    metrics: WorkerMetrics = field(default_factory=lambda: WorkerMetrics(""))


class Session:
    """The `Model` that one attempt at a rollout plays against. Turns may run in parallel."""

    def __init__(self, policy: Policy, stream: RolloutStream) -> None:
        self._policy = policy
        self._stream = stream
        self._memory = MessageMemory()
        self._images = ImageTable(policy.renderers.geometry)
        self._trace = Trace()
        self._prompter = Prompter(policy.renderers, self._trace, self._images)
        self._turns = 0
        self.turns_done = 0
        self.context_tokens = 0
        self.sampled_tokens = 0
        self.prompt_sources: Counter[str] = Counter()
        self.last_finish_reason: str | None = None

    async def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        """See `rollout.environments.base.Model.chat`."""
        turn, self._turns = self._turns, self._turns + 1
        clock = _Clock()
        version = self._policy.version.current
        structlog.contextvars.bind_contextvars(turn=turn)
        self._stream.require_open()
        if not messages or dict(messages[-1]).get("role") == "assistant":
            raise MessageError("the conversation must end with a message to the model, not with its own.")

        canonical = await self._prepare(messages)
        clock.lap("prepare")

        toolset = tools_identity(tools)
        prompt = await self._prompter.prompt(canonical, toolset, tools)
        clock.lap("render")

        request = self._request(turn, prompt, {**self._policy.sampling, **(sampling or {})})
        self.context_tokens = len(request.expanded)
        generation = await self._policy.engine.generate(request)
        self._require_usable(generation, request)
        clock.lap("engine")

        parsed = self._policy.renderers.parse(prompt.begun, generation.token_ids, tools)
        message, calls = _assistant_message(parsed, turn)
        clock.lap("parse")

        commit = self._commit(prompt, message, generation, toolset)
        step = self._step(turn, commit, prompt, generation, tools, clock, version)
        await self._stream.step(step)
        self.turns_done += 1
        self.context_tokens = len(prompt.whole.expanded.ids) + len(generation.token_ids)
        self.sampled_tokens += len(generation.token_ids)
        self.prompt_sources[prompt.source.value] += 1
        self.last_finish_reason = generation.finish_reason
        metrics = self._policy.metrics
        metrics.turn_done(
            prompt.source.value,
            prompt_tokens=len(prompt.whole.expanded.ids),
            cached_tokens=generation.cached_tokens,
            sampled_tokens=len(generation.token_ids),
            laps=clock.laps,
        )
        metrics.policy_used(generation.versions, version)
        return Reply(
            message=message,
            text=parsed.text,
            finish_reason=generation.finish_reason,
            tool_calls=calls,
            prompt_tokens=len(prompt.whole.expanded.ids),
            completion_tokens=len(generation.token_ids),
        )

    @property
    def images_seen(self) -> int:
        """How many different images this rollout introduced."""
        return len(self._images)

    async def _prepare(self, messages: list[Message]) -> list[CanonicalMessage]:
        """Only what was not looked at before is prepared; a conversation comes again, and longer, at every turn."""
        known = self._memory.recall(messages)
        first, new = len(known), messages[len(known) :]
        try:
            report = await prepare_images_async(new, self._policy.images)
        except ImageError as error:
            if error.message_index is None or error.part_index is None:
                raise
            raise error.at(first + error.message_index, error.part_index) from None
        self._images.learn(report.images, first=first)
        if report.images and self._policy.images.mode == "offload":
            given = sum(image.n_bytes for image in report.images)
            self._policy.metrics.images_given(given, stored=report.bytes_written)
        found = ((image.message_index, image.part_index, image.mm_hash) for image in report.images)
        canonical = canonicalise(new, found, first=first)
        for message, form in zip(new, canonical, strict=True):
            self._memory.learn(message, form)
        return known + canonical

    def _request(self, turn: int, prompt: Prompt, sampling: Mapping[str, Any]) -> GenerateRequest:
        """Every image of the path, prior turns included, in prompt order and as often as it occurs."""
        expanded = prompt.whole.expanded
        room = _room(len(expanded.ids), self._policy.engine.max_model_len)
        wanted = {key: value for key, value in sampling.items() if value is not None}
        if room is not None:
            wanted["max_tokens"] = min(wanted.get("max_tokens", room), room)
        identity = self._stream.identity
        if "seed" in wanted:
            wanted["seed"] = _turn_seed(wanted["seed"], identity.rollout, turn)
        return GenerateRequest(
            request_id=f"{identity.run}-{identity.rollout}-{identity.attempt}-{turn}",
            session=f"{identity.run}-{identity.rollout}",
            prompt=prompt.whole.ids,
            images=self._images.references(expanded.placeholders),
            expanded=expanded.ids,
            known=len(prompt.base.expanded.ids),
            placeholders=expanded.placeholders,
            pad_id=self._policy.renderers.pad_id,
            sampling=wanted,
            stop_token_ids=self._policy.renderers.stop_token_ids,
            required=self._policy.version.required,
        )

    def _require_usable(self, generation: Generation, request: GenerateRequest) -> None:
        if generation.finish_reason == "abort":
            raise EngineAborted(f"{request.request_id}: the engine aborted the request.")
        if not len(generation.token_ids):
            raise UnusableCompletion(f"{request.request_id}: the completion is empty.")
        if request.pad_id is not None and (generation.token_ids == request.pad_id).any():
            raise UnusableCompletion(f"{request.request_id}: the policy sampled an image placeholder.")

    def _commit(self, prompt: Prompt, message: Message, generation: Generation, toolset: bytes) -> Commit:
        (canonical,) = canonicalise([message], ())
        ids = join(prompt.opening, generation.token_ids)
        answer = Draft(canonical, TokenRun(ids, len(prompt.opening), generation.logprobs))
        commit = self._trace.commit(prompt.base.leaf, prompt.drafts, answer, toolset)
        self._prompter.answered(prompt, commit.leaf, generation.token_ids, generation.logprobs)
        return commit

    def _step(
        self,
        turn: int,
        commit: Commit,
        prompt: Prompt,
        generation: Generation,
        tools: Sequence[Mapping[str, Any]] | None,
        clock: "_Clock",
        version: str,
    ) -> Step:
        return Step(
            header=self._stream.next_header(),
            turn=turn,
            parent=commit.parent,
            first=commit.nodes[0].index,
            nodes=tuple(NodeRecord(node.message.message, node.run, node.content) for node in commit.nodes),
            images=self._images.introduce(commit.nodes),
            prompt_source=prompt.source.value,
            prompt_length=len(prompt.whole.expanded.ids),
            prompt_digest=generation.prompt_digest,
            finish_reason=generation.finish_reason,
            answer_digest=generation.answer_digest,
            stop_reason=generation.stop_reason,
            versions=generation.versions,
            policy=(version, self._policy.version.current),
            cached_tokens=generation.cached_tokens,
            tools=tools if commit.parent == ROOT else None,
            routed_experts=generation.routed_experts,
            sampling_mask=generation.sampling_mask,
            timings=clock.laps,
        )


class _Clock:
    """Seconds spent in each stage of a turn."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage], self._last = round(now - self._last, 6), now


def _assistant_message(parsed: Parsed, turn: int) -> tuple[Message, tuple[ToolCall, ...]]:
    calls = tuple(
        ToolCall(call.id or f"call-{turn}-{at}", call.name, call.arguments, call.raw, call.error)
        for at, call in enumerate(parsed.tool_calls)
    )
    # Malformed calls stay in the text: in a prompt that is rendered whole they would else never have been said.
    malformed = (call.text for call in parsed.tool_calls if call.error is not None)
    message: Message = {"role": "assistant", "content": "\n".join(filter(None, (parsed.text, *malformed)))}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    usable = [call for call in calls if call.error is None]
    if usable:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in usable
        ]
    return message, calls


def _room(length: int, max_model_len: int | None) -> int | None:
    if max_model_len is None:
        return None
    if length >= max_model_len:
        raise ContextExhausted(f"the prompt has {length} tokens, the model's context holds {max_model_len}.")
    return max_model_len - length


def _turn_seed(seed: int, rollout: str, turn: int) -> int:
    """One seed in the configuration, another one for each rollout and turn; the same again in the next run."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{rollout}:{turn}".encode(), digest_size=4).digest(), "big")
