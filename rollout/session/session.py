"""Plays the turns of one attempt with the policy. A turn has seven stages.

1 images     prepare the images of new messages in place, or refuse them
2 trace      find the known part of the conversation
3 renderer   bridge the new messages, or render the whole conversation
4 engine     send one request; the answer has tokens, log-probs and versions
5 renderer   parse the completion into an assistant message and tool calls
6 trace      add the new messages and the answer
7 records    put one step on the trajectories queue
"""

import hashlib
import time
from collections.abc import Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import ParsedCompletion
from renderers_adapter.tokens import TokenRun, concat_ids
from rollout.config.sampling import check_sampling
from rollout.engine.client import EngineClient
from rollout.engine.errors import UnusableCompletion
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.environments.base import ContextExhausted, Reply
from rollout.images import ImageError, ImagePolicy, prepare_images_async
from rollout.metrics.worker import WorkerMetrics
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import ROOT, MessageTokens, Step
from rollout.records.messages import (
    CanonicalMessage,
    CanonicalMessageCache,
    Message,
    ToolCall,
    canonicalise,
    digest_tools,
    require_bounded,
    require_conversation,
)
from rollout.records.stream import RolloutStream
from rollout.records.tools import require_tools
from rollout.session.chat_arguments import refuse_arguments
from rollout.session.chat_calls import ChatCalls
from rollout.session.counters import SessionCounters
from rollout.session.image_table import ImageTable
from rollout.session.prompt import Prompt, PromptBuilder
from rollout.session.trace import Commit, Trace
from rollout.value_limits import MAX_CHARACTERS, TooMuchTextError


@dataclass(slots=True)
class PolicyVersionState:
    """The trainer's policy version, as this process knows it; it changes while rollouts run.

    Attributes:
        current: the name of the trainer's version.
        required: the version that the trainer pushed to the engines. Engines with older weights are not used. None: all
            engines are used.
    """

    current: str = "0"
    required: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyClient:
    """The objects that a session needs to talk to the policy; all sessions of a worker share them.

    Attributes:
        renderers: the renderers, which turn messages into tokens, and tokens into messages.
        engine: the client that sends requests to the engines.
        image_policy: which images are accepted, and where they are stored.
        sampling: the sampling parameters of the YAML, which a turn may override.
        version: the trainer's policy version.
        metrics: the metrics of the worker.
        ban_placeholders: whether requests forbid the engines to sample the pad tokens of images and videos.
    """

    renderers: RendererPool
    engine: EngineClient
    image_policy: ImagePolicy
    sampling: Mapping[str, Any]
    version: PolicyVersionState = field(default_factory=PolicyVersionState)
    metrics: WorkerMetrics = field(default_factory=lambda: WorkerMetrics(""))
    ban_placeholders: bool = True

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that the requests forbid the engines to sample."""
        return self.renderers.media_ids if self.ban_placeholders else ()


class Session:
    """The `Model` of one attempt's environment. Its turns may run in parallel."""

    def __init__(self, policy: PolicyClient, stream: RolloutStream) -> None:
        self._policy = policy
        self._stream = stream
        self._message_cache = CanonicalMessageCache()
        self._image_table = ImageTable(policy.renderers.geometry)
        self._trace = Trace()
        self._prompt_builder = PromptBuilder(policy.renderers, self._trace, self._image_table)
        self._calls = ChatCalls()
        self._next_turn = 0
        self.counters = SessionCounters(policy.metrics)

    def close_unawaited_calls(self) -> int:
        """Close the calls of `chat` that were never awaited; return their number."""
        return self._calls.close_unawaited()

    def chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
        **unknown: object,
    ) -> Coroutine[Any, Any, Reply]:
        """Return the policy's answer to `messages`; see `rollout.environments.base.Model.chat`."""
        refuse_arguments(unknown)
        return self._calls.add(self._chat(messages, tools=tools, sampling=sampling))

    async def _chat(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
    ) -> Reply:
        """Play a turn, and record the limit if the conversation does not fit the model's context."""
        try:
            return await self._play_turn(messages, tools=tools, sampling=sampling)
        except ContextExhausted:
            self.counters.last_limit = RolloutLimit.CONTEXT
            raise

    async def _play_turn(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
    ) -> Reply:
        """Play a turn: make the prompt, let an engine sample the answer, and put the step on the queue."""
        turn, self._next_turn = self._next_turn, self._next_turn + 1
        stage_timer = _StageTimer()
        version_at_start = self._policy.version.current
        structlog.contextvars.bind_contextvars(turn=turn)
        self._stream.require_open()
        require_conversation(messages)
        require_tools(tools, "chat(tools=…)")
        turn_sampling = {} if sampling is None else check_sampling(sampling)

        canonical_messages = await self._prepare_messages(messages)
        stage_timer.mark_stage("prepare")

        tools_digest = digest_tools(tools)
        prompt = await self._prompt_builder.build_prompt(canonical_messages, tools_digest, tools)
        stage_timer.mark_stage("render")

        request = self._build_request(turn, prompt, {**self._policy.sampling, **turn_sampling})
        self.counters.context_tokens = len(request.expanded_prompt)
        generation = await self._policy.engine.generate(request)
        self._require_usable(generation, request)
        stage_timer.mark_stage("engine")

        parsed = self._policy.renderers.parse(prompt.parse_prefix, generation.token_ids, tools)
        message, tool_calls = build_assistant_message(parsed, turn)
        stage_timer.mark_stage("parse")

        commit = self._commit_turn(prompt, message, generation, tools_digest)
        step = self._build_step(turn, commit, prompt, generation, tools, stage_timer, version_at_start)
        await self._stream.put_step(step)
        self.counters.add_turn(step, len(generation.token_ids), self._policy.engine.max_model_len)
        return Reply(
            message=message,
            text=parsed.text,
            finish_reason=generation.finish_reason,
            tool_calls=tool_calls,
            prompt_tokens=len(prompt.full_path.expanded.ids),
            completion_tokens=len(generation.token_ids),
            turn=turn,
        )

    @property
    def played_turns(self) -> Set[int]:
        """The numbers of the turns that were played."""
        return self.counters.played_turns

    @property
    def image_count(self) -> int:
        """The number of different images in this rollout."""
        return len(self._image_table)

    async def _prepare_messages(self, messages: list[Message]) -> list[CanonicalMessage]:
        """Return the conversation in canonical form. Known messages come from the cache; only new ones are prepared."""
        cached_messages = self._message_cache.known_prefix(messages)
        first_index, new_messages = len(cached_messages), messages[len(cached_messages) :]
        try:
            require_bounded(new_messages, first_index=first_index)
            report = await prepare_images_async(new_messages, self._policy.image_policy)
        except TooMuchTextError as error:
            raise ContextExhausted(f"the conversation {error}, which is too long for every model.") from None
        except ImageError as error:
            if error.message_index is None or error.part_index is None:
                raise
            raise error.at(first_index + error.message_index, error.part_index) from None
        self._image_table.add(report.images, first_index=first_index)
        if report.images and self._policy.image_policy.mode == "offload":
            image_bytes = sum(image.asset.n_bytes for image in report.images)
            self._policy.metrics.record_images(image_bytes, stored_bytes=report.bytes_written)
        canonical_messages = canonicalise(new_messages, report.image_positions, first_index=first_index)
        for message, canonical_message in zip(new_messages, canonical_messages, strict=True):
            self._message_cache.add(message, canonical_message)
        conversation = cached_messages + canonical_messages
        if (size := sum(message.size for message in conversation)) > MAX_CHARACTERS:
            raise ContextExhausted(f"the conversation has {size:,} bytes of JSON, which is too long for every model.")
        return conversation

    def _build_request(self, turn: int, prompt: Prompt, sampling: Mapping[str, Any]) -> GenerateRequest:
        """Build the request. Its images are in the order of the prompt; an image that occurs twice is there twice."""
        expanded = prompt.full_path.expanded
        remaining_tokens = _remaining_context_tokens(len(expanded.ids), self._policy.engine.max_model_len)
        request_sampling = {key: value for key, value in sampling.items() if value is not None}
        if remaining_tokens is not None:
            request_sampling["max_tokens"] = min(request_sampling.get("max_tokens", remaining_tokens), remaining_tokens)
        rollout_id = self._stream.attempt_id
        if "seed" in request_sampling:
            request_sampling["seed"] = _turn_seed(request_sampling["seed"], rollout_id.rollout, turn)
        return GenerateRequest(
            request_id=f"{rollout_id.run}-{rollout_id.rollout}-{rollout_id.attempt}-{turn}",
            session_id=f"{rollout_id.run}-{rollout_id.rollout}",
            prompt=prompt.full_path.ids,
            images=self._image_table.references(expanded.placeholders),
            expanded_prompt=expanded.ids,
            known_token_count=len(prompt.known_path.expanded.ids),
            placeholders=expanded.placeholders,
            pad_id=self._policy.renderers.pad_id,
            sampling=request_sampling,
            stop_token_ids=self._policy.renderers.stop_token_ids,
            banned_ids=self._policy.banned_ids,
            required_version=self._policy.version.required,
            on_retry=self.counters.add_request_retry,
        )

    def _require_usable(self, generation: Generation, request: GenerateRequest) -> None:
        """Raise UnusableCompletion if the completion is empty or contains a forbidden token."""
        if not len(generation.token_ids):
            raise UnusableCompletion(f"{request.request_id}: the completion is empty.")
        if request.pad_id is not None and (generation.token_ids == request.pad_id).any():
            raise UnusableCompletion(f"{request.request_id}: the policy sampled an image pad token.")
        if np.isin(generation.token_ids, generation.banned_ids).any():
            raise UnusableCompletion(
                f"{request.request_id}: the engine sampled a banned token, which the request forbids."
            )

    def _commit_turn(self, prompt: Prompt, message: Message, generation: Generation, tools_digest: bytes) -> Commit:
        """Add the new messages and the answer to the trace; return the new nodes."""
        (canonical_message,) = canonicalise([message], ())
        answer_ids = concat_ids(prompt.generation_prompt, generation.token_ids)
        answer = MessageTokens(
            canonical_message.message, TokenRun(answer_ids, len(prompt.generation_prompt), generation.logprobs), ()
        )
        commit = self._trace.commit(
            prompt.known_path.last_node, prompt.new_messages, (canonical_message.digest, answer), tools_digest
        )
        self._prompt_builder.add_answer(prompt, commit.leaf, generation.token_ids, generation.logprobs)
        return commit

    def _build_step(
        self,
        turn: int,
        commit: Commit,
        prompt: Prompt,
        generation: Generation,
        tools: Sequence[Mapping[str, Any]] | None,
        stage_timer: "_StageTimer",
        version_at_start: str,
    ) -> Step:
        """Return the record of a turn."""
        return Step(
            header=self._stream.next_header(),
            turn=turn,
            parent=commit.parent,
            first=commit.first,
            nodes=commit.nodes,
            images=self._image_table.take_new_records(commit.nodes),
            prompt_source=prompt.source,
            prompt_length=len(prompt.full_path.expanded.ids),
            prompt_digest=generation.prompt_digest,
            finish_reason=generation.finish_reason,
            answer_digest=generation.answer_digest,
            stop_reason=generation.stop_reason,
            versions=generation.versions,
            policy=(version_at_start, self._policy.version.current),
            cached_tokens=generation.cached_tokens,
            tools=tools if commit.parent == ROOT else None,
            routed_experts=generation.routed_experts,
            sampling_mask=generation.sampling_mask,
            banned_ids=generation.banned_ids,
            timings=stage_timer.stage_seconds,
        )


Session._chat.__qualname__ = "model.chat"
"""Environments know the method by this name. Python shows the name in the warning about a missing `await`."""


class _StageTimer:
    """Measures the seconds of each stage of a turn."""

    def __init__(self) -> None:
        self.stage_seconds: dict[str, float] = {}
        self._last_mark = time.perf_counter()

    def mark_stage(self, stage: str) -> None:
        """Record the time since the previous stage as the time of this stage."""
        now = time.perf_counter()
        self.stage_seconds[stage], self._last_mark = round(now - self._last_mark, 6), now


def build_assistant_message(parsed: ParsedCompletion, turn: int) -> tuple[Message, tuple[ToolCall, ...]]:
    """Return the message and the tool calls of a completion, for a `Reply`."""
    tool_calls = tuple(
        ToolCall(call.id or f"call-{turn}-{at}", call.name, call.arguments, call.raw, call.error)
        for at, call in enumerate(parsed.tool_calls)
    )
    # Malformed calls stay in the text. Otherwise, they would be missing when the whole conversation is rendered.
    malformed_texts = (call.malformed_text for call in parsed.tool_calls if call.error is not None)
    message: Message = {"role": "assistant", "content": "\n".join(filter(None, (parsed.text, *malformed_texts)))}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    valid_calls = [call for call in tool_calls if call.error is None]
    if valid_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in valid_calls
        ]
    return message, tool_calls


def _remaining_context_tokens(prompt_length: int, max_model_len: int | None) -> int | None:
    """Return how many tokens fit after the prompt; None if the limit is unknown.

    Raises:
        ContextExhausted: no token fits.
    """
    if max_model_len is None:
        return None
    if prompt_length >= max_model_len:
        raise ContextExhausted(
            f"the prompt has {prompt_length} tokens, but the model's context has only {max_model_len}."
        )
    return max_model_len - prompt_length


def _turn_seed(seed: int, rollout: str, turn: int) -> int:
    """Return the seed of a turn. It depends only on the configured seed, the rollout and the turn."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{rollout}:{turn}".encode(), digest_size=4).digest(), "big")
