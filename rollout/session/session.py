"""Plays the turns of one attempt with the policy. A turn has seven stages.

1 images     prepare the images of new messages in place, or refuse them
2 trace      find the known part of the conversation
3 renderer   bridge the new messages, or render the whole conversation
4 engine     send one request; the answer has tokens, log-probs and versions
5 renderer   parse the completion into an assistant message and tool calls
6 trace      add the new messages and the answer
7 records    put one step on the trajectories queue
"""

from collections.abc import Coroutine, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from renderers_adapter.errors import TooManyTokens
from renderers_adapter.tokens import TokenRun, concat_ids
from rollout.config.sampling import check_sampling, turn_seed
from rollout.engine.errors import UnusableCompletion
from rollout.engine.protocol import Generation
from rollout.engine.request import GenerateRequest
from rollout.environments.base import ContextExhausted, Reply
from rollout.environments.endpoint import Endpoint, EndpointOptions, EndpointSocket, EndpointUnavailable, RootRule
from rollout.images import ImageError, prepare_images_async
from rollout.records.conversations import Echo, RootKind
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import ROOT, MessageTokens, Step
from rollout.records.messages import (
    CanonicalMessage,
    CanonicalMessageCache,
    Message,
    canonicalise,
    digest_tools,
    require_bounded,
    require_conversation,
)
from rollout.records.stream import RolloutStream
from rollout.records.tools import require_tools
from rollout.rundir.artifacts import create_attempt_directory
from rollout.session.chat_arguments import refuse_arguments
from rollout.session.chat_calls import ChatCalls
from rollout.session.counters import SessionCounters
from rollout.session.image_table import ImageTable
from rollout.session.policy import PolicyClient
from rollout.session.prompt import Prompt, PromptBuilder
from rollout.session.replies import build_assistant_message
from rollout.session.stage_timer import StageTimer
from rollout.session.trace import Commit, Trace
from rollout.session.turns import EndpointReport, SessionTurn, TurnObserver
from rollout.value_limits import MAX_CHARACTERS, TooMuchTextError

log = structlog.get_logger()


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
        self.endpoint_reports: list[EndpointReport] = []

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
        return (await self.play_turn(messages, tools=tools, sampling=sampling)).reply

    def endpoint(
        self,
        *,
        root_kinds: RootRule | None = None,
        socket: EndpointSocket | None = None,
        accept_reward: bool = False,
    ) -> AbstractAsyncContextManager[Endpoint]:
        """Open an address for an agent program; see `rollout.environments.base.Model.endpoint`."""
        if self._policy.open_endpoint is None:
            raise EndpointUnavailable(
                "this policy has no gateway, so model.endpoint() cannot be used; play the rollout with `rollout run`, "
                "`rollout launch` or `rollout.testing.play`."
            )
        return self._policy.open_endpoint(self, EndpointOptions(root_kinds, socket, accept_reward))

    def artifacts_directory(self) -> Path:
        """Return the directory of this attempt's files; see `rollout.environments.base.Model.artifacts_directory`."""
        attempt = self._stream.attempt_id
        return create_attempt_directory(self._policy.artifacts, attempt.rollout, attempt.attempt)

    async def play_turn(
        self,
        messages: list[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
        echo: Echo | None = None,
        constrained: bool = False,
        observer: TurnObserver | None = None,
    ) -> SessionTurn:
        """Play a turn, and record the limit if the conversation does not fit the model's context.

        Args:
            messages: the conversation; see `rollout.environments.base.Model.chat`, also for the errors.
            tools: the schemas of the tools.
            sampling: the sampling keys of this turn.
            echo: how a program repeated earlier answers; for the step.
            constrained: whether the program's request changes the distribution of the answer; for the step.
            observer: is told when the prompt is ready, and when the turn is committed.
        """
        try:
            return await self._play_turn(messages, tools, sampling, echo, constrained, observer)
        except ContextExhausted:
            self.counters.record_limit(RolloutLimit.CONTEXT)
            raise

    async def count_prompt_tokens(self, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None) -> int:
        """Return the number of tokens of a prompt, with its images expanded. Nothing is recorded.

        The last message may be one of the model.
        """
        require_tools(tools, "tools")
        canonical_messages = await self._prepare_messages(messages)
        prompt = await self._build_prompt(canonical_messages, digest_tools(tools), tools)
        return len(prompt.full_path.expanded.ids)

    async def _play_turn(
        self,
        messages: list[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        sampling: Mapping[str, Any] | None,
        echo: Echo | None,
        constrained: bool,
        observer: TurnObserver | None,
    ) -> SessionTurn:
        """Play a turn: make the prompt, let an engine sample the answer, and put the step on the queue."""
        turn, self._next_turn = self._next_turn, self._next_turn + 1
        stage_timer = StageTimer()
        version_at_start = self._policy.version.current
        structlog.contextvars.bind_contextvars(turn=turn)
        self._stream.require_open()
        require_conversation(messages)
        require_tools(tools, "chat(tools=…)")
        turn_sampling = {} if sampling is None else check_sampling(sampling)

        canonical_messages = await self._prepare_messages(messages)
        stage_timer.mark_stage("prepare")

        tools_digest = digest_tools(tools)
        prompt = await self._build_prompt(canonical_messages, tools_digest, tools)
        stage_timer.mark_stage("render")

        request = self._build_request(turn, prompt, {**self._policy.sampling, **turn_sampling})
        self.counters.context_tokens = len(request.expanded_prompt)
        if observer is not None:
            await observer.on_prompt_ready()
            stage_timer.mark_stage("wait")
        generation = await self._policy.engine.generate(request)
        self._require_usable(generation, request)
        stage_timer.mark_stage("engine")

        parsed = self._policy.renderers.parse(prompt.parse_prefix, generation.token_ids, tools)
        message, tool_calls = build_assistant_message(parsed, turn)
        stage_timer.mark_stage("parse")

        commit = self._commit_turn(prompt, message, generation, tools_digest)
        step = self._build_step(turn, commit, prompt, generation, tools, stage_timer, version_at_start)
        step = replace(step, echo=echo, constrained=constrained)
        sending = self._stream.put_step(step)
        if observer is not None:
            observer.on_commit(turn)
        await sending
        self.counters.add_turn(step, len(generation.token_ids), self._policy.engine.max_model_len)
        reply = Reply(
            message=message,
            text=parsed.text,
            finish_reason=generation.finish_reason,
            tool_calls=tool_calls,
            prompt_tokens=len(prompt.full_path.expanded.ids),
            completion_tokens=len(generation.token_ids),
            turn=turn,
        )
        return SessionTurn(
            reply,
            root=self._trace.root_of(commit.leaf),
            prompt_source=prompt.source,
            cached_tokens=generation.cached_tokens or 0,
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            stop_reason=generation.stop_reason,
        )

    def decode_token(self, token_id: int) -> str:
        """Return the text of one token."""
        return self._policy.renderers.decode([token_id])

    def unreceived_turns(self) -> list[int]:
        """Return the turns whose answers the programs of this rollout did not receive."""
        return [turn for report in self.endpoint_reports for turn in report.unreceived_turns()]

    def root_kinds(self) -> dict[int, RootKind]:
        """Return the kinds of the roots that the programs of this rollout began, by the root's first node."""
        kinds: dict[int, RootKind] = {}
        for report in self.endpoint_reports:
            try:
                kinds |= report.root_kinds()
            except Exception:  # the rule is the environment's code; it has raised this error in `async with`, too
                log.warning("the kinds of roots are unknown", exc_info=True)
        return kinds

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The sampling parameters of the YAML, which a turn may override."""
        return self._policy.sampling

    @property
    def max_model_len(self) -> int | None:
        """The limit for the tokens of a prompt and its answer; None if it is unknown."""
        return self._policy.engine.max_model_len

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

    async def _build_prompt(
        self, messages: list[CanonicalMessage], tools_digest: bytes, tools: Sequence[Mapping[str, Any]] | None
    ) -> Prompt:
        limit = self._policy.engine.max_model_len
        try:
            return await self._prompt_builder.build_prompt(messages, tools_digest, tools, token_limit=limit)
        except TooManyTokens as error:
            raise ContextExhausted(f"{error} No more fit into the model's context.") from None

    def _build_request(self, turn: int, prompt: Prompt, sampling: Mapping[str, Any]) -> GenerateRequest:
        """Build the request. Its images are in the order of the prompt; an image that occurs twice is there twice."""
        expanded = prompt.full_path.expanded
        remaining_tokens = _remaining_context_tokens(len(expanded.ids), self._policy.engine.max_model_len)
        request_sampling = {key: value for key, value in sampling.items() if value is not None}
        if remaining_tokens is not None:
            request_sampling["max_tokens"] = min(request_sampling.get("max_tokens", remaining_tokens), remaining_tokens)
        rollout_id = self._stream.attempt_id
        if "seed" in request_sampling:
            request_sampling["seed"] = turn_seed(request_sampling["seed"], rollout_id.rollout, turn)
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
        stage_timer: StageTimer,
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
