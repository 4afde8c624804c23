"""From a conversation to the prompt of a turn: what of it is known, and which tokens the rest adds.

The tokens of a known beginning are used as they are, up to the last answer that the policy sampled there; what follows
is bridged. Where that cannot be proven right, the whole conversation is rendered, and the reason is kept. Either way
every message has tokens of its own, so that the trace shares whatever turns out to be the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.adapter import BridgeRefused
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import MessageSegment
from renderers_adapter.tokens import (
    ExpandedPath,
    ImageSlot,
    LogicalIds,
    Logprobs,
    TokenRun,
    as_logical_ids,
    concat_ids,
    expand,
    extend_path,
)
from rollout.records.kinds import PromptSource
from rollout.records.messages import CanonicalMessage
from rollout.session.image_table import ImageTable
from rollout.session.trace import ROOT, DraftNode, PrefixMatch, Trace

_MAX_CACHED_PATHS = 4
"""Branches of a rollout whose joined tokens are kept, to be extended; any other one is joined again."""


def summarize_prompt_sources(counts: Mapping[PromptSource, int]) -> str:
    """How many prompts were bridged, and how many rendered for which reason, as one line."""
    reasons = (f"{source}={counts.get(source, 0)}" for source in PromptSource if source is not PromptSource.BRIDGE)
    return f"bridge: {counts.get(PromptSource.BRIDGE, 0)}, rendered: {' '.join(reasons)}"


@dataclass(frozen=True, slots=True)
class TokenPath:
    """The tokens from a root to a node, joined: as they cross the queue, and as the engine sees them."""

    last_node: int
    ids: LogicalIds
    expanded: ExpandedPath

    def share_memory_with(self, longer_path: "TokenPath") -> "TokenPath":
        """The same in the memory of a path that goes on from it; this one where that path does not."""
        own_runs = self.expanded.runs
        if not own_runs or longer_path.expanded.runs[len(own_runs) - 1 : len(own_runs)] != own_runs[-1:]:
            return self
        return TokenPath(
            self.last_node, LogicalIds(longer_path.ids[: len(self.ids)]), longer_path.expanded.first_runs(len(own_runs))
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn before it is sampled: a known path, the messages to add below it, and what opens the answer.

    `full_path` is all of that joined, with the path's own leaf.
    """

    known_path: TokenPath
    new_nodes: tuple[DraftNode, ...]
    generation_prompt: LogicalIds
    full_path: TokenPath
    source: PromptSource

    @property
    def parse_prefix(self) -> LogicalIds:
        """Where the answer's turn was opened: its opening, or some place in all of it where the turn only goes on."""
        return self.generation_prompt if len(self.generation_prompt) else self.full_path.ids


class PromptBuilder:
    """Builds the prompts of one rollout."""

    def __init__(self, renderers: RendererPool, trace: Trace, image_table: ImageTable) -> None:
        self._renderers = renderers
        self._trace = trace
        self._image_table = image_table
        self._empty_path = TokenPath(ROOT, as_logical_ids([]), expand([], pad_id=None))
        self._cached_paths: OrderedDict[int, TokenPath] = OrderedDict()

    async def build_prompt(
        self, messages: Sequence[CanonicalMessage], tools_digest: bytes, tools: Sequence[Mapping[str, Any]] | None
    ) -> Prompt:
        """The prompt that ends with the opening of the policy's answer to `messages`.

        Raises:
            UnsupportedConversation: no prompt would be right.
            PlaceholderError: a message's text spells the token that stands for an image.
        """
        prefix_match = self._trace.match_prefix(messages, tools_digest)
        source = self._prompt_source(prefix_match, len(messages))
        if prefix_match.last_answer_index != ROOT:
            last_answer = self._trace.nodes[prefix_match.last_answer_index]
            answer_tokens, new_messages = last_answer.run, messages[last_answer.depth + 1 :]
            parse_prefix, completion = (
                as_logical_ids(answer_tokens.ids[: answer_tokens.sampled_from]),
                as_logical_ids(answer_tokens.ids[answer_tokens.sampled_from :]),
            )
            if not len(parse_prefix) and last_answer.parent != ROOT:
                # Some templates let the model go on in its turn after a tool's result: it was opened further back.
                parse_prefix = concat_ids(*(node.run.ids for node in self._trace.path(last_answer.parent)))
            try:
                bridged = await self._renderers.bridge(
                    parse_prefix, completion, [message.message for message in new_messages], tools
                )
            except BridgeRefused as refusal:
                source = PromptSource(refusal.reason)
            else:
                return self._assemble_prompt(
                    self._token_path_to(prefix_match.last_answer_index),
                    new_messages,
                    bridged.segments,
                    bridged.generation_prompt,
                    source,
                )
        rendered = await self._renderers.render([m.message for m in messages], tools)
        return self._assemble_prompt(self._empty_path, messages, rendered.segments, rendered.generation_prompt, source)

    def add_answer(self, prompt: Prompt, answer_node: int, completion: LogicalIds, logprobs: Logprobs) -> None:
        """Keep the joined tokens of a path that now ends with this answer: it is the likeliest to be extended."""
        run = TokenRun(completion, 0, logprobs)
        expanded = extend_path(prompt.full_path.expanded, expand([run], pad_id=self._renderers.pad_id))
        self._cache_path(TokenPath(answer_node, concat_ids(prompt.full_path.ids, completion), expanded))

    def _prompt_source(self, prefix_match: PrefixMatch, message_count: int) -> PromptSource:
        if prefix_match.last_answer_index != ROOT:
            return PromptSource.BRIDGE
        if not self._trace.nodes:
            return PromptSource.FIRST
        if prefix_match.matched_messages == 0:
            return PromptSource.NEW_CONVERSATION
        return PromptSource.RETRY if prefix_match.matched_messages == message_count else PromptSource.COMPACTION

    def _assemble_prompt(
        self,
        known_path: TokenPath,
        messages: Sequence[CanonicalMessage],
        segments: Sequence[MessageSegment],
        generation_prompt: LogicalIds,
        source: PromptSource,
    ) -> Prompt:
        new_nodes = tuple(
            self._draft_node(message, segment) for message, segment in zip(messages, segments, strict=True)
        )
        runs = [*(draft.run for draft in new_nodes), TokenRun(generation_prompt, len(generation_prompt))]
        expanded = extend_path(known_path.expanded, expand(runs, pad_id=self._renderers.pad_id))
        full_path = TokenPath(known_path.last_node, concat_ids(known_path.ids, *(run.ids for run in runs)), expanded)
        self._share_memory(full_path)
        return Prompt(known_path.share_memory_with(full_path), new_nodes, generation_prompt, full_path, source)

    def _draft_node(self, message: CanonicalMessage, segment: MessageSegment) -> DraftNode:
        image_slots = tuple(
            ImageSlot(mm_hash, offset, self._image_table.token_count(mm_hash))
            for mm_hash, offset in zip(message.image_hashes, segment.image_offsets, strict=True)
        )
        return DraftNode(message, TokenRun(segment.ids, len(segment.ids), images=image_slots), segment.content_spans)

    def _token_path_to(self, leaf: int) -> TokenPath:
        if leaf in self._cached_paths:
            self._cached_paths.move_to_end(leaf)
            return self._cached_paths[leaf]
        runs = [node.run for node in self._trace.path(leaf)]
        return self._cache_path(
            TokenPath(leaf, concat_ids(*(run.ids for run in runs)), expand(runs, pad_id=self._renderers.pad_id))
        )

    def _share_memory(self, longest_path: TokenPath) -> None:
        """Let every path that this one goes on from lie in its memory: a long conversation is there once."""
        for leaf, path in self._cached_paths.items():
            self._cached_paths[leaf] = path.share_memory_with(longest_path)

    def _cache_path(self, path: TokenPath) -> TokenPath:
        self._share_memory(path)
        self._cached_paths[path.last_node] = path
        if len(self._cached_paths) > _MAX_CACHED_PATHS:
            self._cached_paths.popitem(last=False)
        return path
