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
from dataclasses import dataclass
from typing import Any

from renderers_adapter.adapter import BridgeRefused
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import Parsed, Segment
from renderers_adapter.tokens import Expanded, ImageSlot, LogicalIds, TokenRun, expand, join
from rollout.engine.client import EngineClient
from rollout.engine.errors import ContextExhausted, EngineAborted, UnusableCompletion
from rollout.engine.protocol import GenerateRequest, Generation, ImageRef
from rollout.environments.base import Reply
from rollout.errors import RolloutError
from rollout.images import ImagePolicy, PreparedImage, prepare_images_async
from rollout.messages import CanonicalMessage, Message, MessageError, ToolCall, canonicalise, tools_identity
from rollout.steps import NodeRecord, Step
from rollout.stream import RolloutStream
from rollout.trace import ROOT, Commit, Draft, Node, Trace


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session needs to talk to the policy; shared by all sessions of a worker."""

    renderers: RendererPool
    engine: EngineClient
    images: ImagePolicy
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _KnownImage:
    """An image of this rollout: how it is sent, how many tokens it becomes, and what its record says."""

    url: str
    tokens: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A turn before it is sampled: a known path, the messages to add below it, and what opens the answer."""

    base: list[Node]
    drafts: list[Draft]
    opening: LogicalIds
    expanded: Expanded
    source: str

    @property
    def runs(self) -> list[TokenRun]:
        return [node.run for node in self.base] + [draft.run for draft in self.drafts]


class Session:
    """The `Model` that one attempt at a rollout plays against. Turns may run in parallel."""

    def __init__(self, policy: Policy, stream: RolloutStream) -> None:
        self._policy = policy
        self._stream = stream
        self._trace = Trace()
        self._images: dict[str, _KnownImage] = {}
        self._recorded: set[str] = set()
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
        if not messages or dict(messages[-1]).get("role") == "assistant":
            raise MessageError("the conversation must end with a message to the model, not with its own.")

        report = await prepare_images_async(messages, self._policy.images)
        canonical = canonicalise(messages, ((i.message_index, i.part_index, i.mm_hash) for i in report.images))
        self._learn(report.images)
        clock.lap("prepare")

        toolset = tools_identity(tools)
        path = self._trace.match(canonical, toolset)
        prompt = await self._prompt(canonical, path, tools)
        clock.lap("render")

        request = self._request(turn, prompt, {**self._policy.sampling, **(sampling or {})})
        generation = await self._policy.engine.generate(request)
        self._require_usable(generation, request)
        clock.lap("engine")

        parsed = self._policy.renderers.parse(prompt.opening, generation.token_ids, tools)
        message, calls = _assistant_message(parsed, turn)
        clock.lap("parse")

        commit = self._commit(prompt, message, generation, toolset)
        step = self._step(turn, commit, prompt, generation, tools, clock)
        await self._stream.step(step)
        self.turns_done += 1
        self.context_tokens = len(prompt.expanded.ids) + len(generation.token_ids)
        self.sampled_tokens += len(generation.token_ids)
        self.prompt_sources[prompt.source] += 1
        self.last_finish_reason = generation.finish_reason
        return Reply(
            message=message,
            text=parsed.text,
            finish_reason=generation.finish_reason,
            tool_calls=calls,
            prompt_tokens=len(prompt.expanded.ids),
            completion_tokens=len(generation.token_ids),
        )

    @property
    def images_seen(self) -> int:
        """How many different images this rollout introduced."""
        return len(self._recorded)

    def _learn(self, images: Sequence[PreparedImage]) -> None:
        geometry = self._policy.renderers.geometry
        for image in images:
            if image.mm_hash in self._images:
                continue
            if geometry is None:
                raise RolloutError("this renderer takes no images; choose a multimodal one in model.renderer.")
            layout = geometry.layout(width=image.width, height=image.height)
            inline = image.url.startswith("data:")
            source = {"raw_uri": image.url} if inline else {"raw_image_id": image.file_name}
            record = {"payload": geometry.payload(layout), **source}
            self._images[image.mm_hash] = _KnownImage(image.url, layout.tokens, record)

    async def _prompt(
        self, messages: list[CanonicalMessage], path: list[Node], tools: Sequence[Mapping[str, Any]] | None
    ) -> _Prompt:
        """Bridge from the last message of the known path that the policy wrote; else render the whole conversation."""
        renderers = self._policy.renderers
        known = next((at + 1 for at in reversed(range(len(path))) if path[at].sampled), 0)
        source = "diverged" if self._trace.nodes else "first"
        if known:
            run, tail = path[known - 1].run, messages[known:]
            opening, completion = run.ids[: run.sampled_from], run.ids[run.sampled_from :]
            try:
                bridged = await renderers.bridge(
                    LogicalIds(opening), LogicalIds(completion), [m.message for m in tail], tools
                )
                return self._assemble(path[:known], tail, bridged.segments, bridged.opening, "bridge")
            except BridgeRefused as refusal:
                source = refusal.reason.value
        rendered = await renderers.render([m.message for m in messages], tools)
        return self._assemble([], messages, rendered.segments, rendered.opening, source)

    def _assemble(
        self,
        base: list[Node],
        messages: Sequence[CanonicalMessage],
        segments: Sequence[Segment],
        opening: LogicalIds,
        source: str,
    ) -> _Prompt:
        drafts = [self._draft(message, segment) for message, segment in zip(messages, segments, strict=True)]
        runs = [node.run for node in base] + [draft.run for draft in drafts]
        expanded = expand([*runs, TokenRun(opening, len(opening))], pad_id=self._policy.renderers.pad_id)
        return _Prompt(base, drafts, opening, expanded, source)

    def _draft(self, message: CanonicalMessage, segment: Segment) -> Draft:
        slots = tuple(
            ImageSlot(mm_hash, offset, self._images[mm_hash].tokens)
            for mm_hash, offset in zip(message.images, segment.image_offsets, strict=True)
        )
        return Draft(message, TokenRun(segment.ids, len(segment.ids), images=slots), segment.content)

    def _request(self, turn: int, prompt: _Prompt, sampling: Mapping[str, Any]) -> GenerateRequest:
        """Every image of the path, prior turns included, in prompt order and as often as it occurs."""
        room = _room(prompt, self._policy.engine.max_model_len)
        wanted = {key: value for key, value in sampling.items() if value is not None}
        if room is not None:
            wanted["max_tokens"] = min(wanted.get("max_tokens", room), room)
        identity = self._stream.identity
        if "seed" in wanted:
            wanted["seed"] = _turn_seed(wanted["seed"], identity.rollout, turn)
        expanded = prompt.expanded
        return GenerateRequest(
            request_id=f"{identity.run}-{identity.rollout}-{identity.attempt}-{turn}",
            session=f"{identity.run}-{identity.rollout}",
            prompt=join(*(run.ids for run in prompt.runs), prompt.opening),
            images=tuple(ImageRef(self._images[mark.hash].url, mark.hash) for mark in expanded.placeholders),
            expanded=expanded.ids,
            known=expanded.starts[len(prompt.base)],
            placeholders=expanded.placeholders,
            pad_id=self._policy.renderers.pad_id,
            sampling=wanted,
            stop_token_ids=self._policy.renderers.stop_token_ids,
        )

    def _require_usable(self, generation: Generation, request: GenerateRequest) -> None:
        if generation.finish_reason == "abort":
            raise EngineAborted(f"{request.request_id}: the engine aborted the request.")
        if not len(generation.token_ids):
            raise UnusableCompletion(f"{request.request_id}: the completion is empty.")
        if request.pad_id is not None and (generation.token_ids == request.pad_id).any():
            raise UnusableCompletion(f"{request.request_id}: the policy sampled an image placeholder.")

    def _commit(self, prompt: _Prompt, message: Message, generation: Generation, tools: bytes) -> Commit:
        (canonical,) = canonicalise([message], ())
        ids = join(prompt.opening, generation.token_ids)
        answer = Draft(canonical, TokenRun(ids, len(prompt.opening), generation.logprobs))
        base = prompt.base[-1].index if prompt.base else ROOT
        return self._trace.commit(base, prompt.drafts, answer, tools)

    def _step(
        self,
        turn: int,
        commit: Commit,
        prompt: _Prompt,
        generation: Generation,
        tools: Sequence[Mapping[str, Any]] | None,
        clock: "_Clock",
    ) -> Step:
        new_images = dict.fromkeys(
            slot.hash for node in commit.nodes for slot in node.run.images if slot.hash not in self._recorded
        )
        self._recorded.update(new_images)
        return Step(
            header=self._stream.next_header(),
            turn=turn,
            parent=commit.parent,
            first=commit.nodes[0].index,
            nodes=tuple(NodeRecord(node.message.message, node.run, node.content) for node in commit.nodes),
            images={mm_hash: self._images[mm_hash].record for mm_hash in new_images},
            prompt_source=prompt.source,
            prompt_length=len(prompt.expanded.ids),
            prompt_digest=generation.prompt_digest,
            finish_reason=generation.finish_reason,
            stop_reason=generation.stop_reason,
            versions=generation.versions,
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
    message: Message = {"role": "assistant", "content": parsed.text}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    usable = [call for call in calls if call.error is None]
    if usable:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in usable
        ]
    return message, calls


def _room(prompt: _Prompt, max_model_len: int | None) -> int | None:
    if max_model_len is None:
        return None
    room = max_model_len - len(prompt.expanded.ids)
    if room < 1:
        raise ContextExhausted(
            f"the prompt has {len(prompt.expanded.ids)} tokens, the model's context holds {max_model_len}."
        )
    return room


def _turn_seed(seed: int, rollout: str, turn: int) -> int:
    """One seed in the configuration, another one for each rollout and turn; the same again in the next run."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{rollout}:{turn}".encode(), digest_size=4).digest(), "big")
