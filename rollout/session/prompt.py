"""Builds the prompt of a turn: finds the known part of the conversation, and makes the tokens of the rest.

The known tokens are used unchanged, up to the last known answer of the policy. The messages after this answer are
bridged. If a bridge might give wrong tokens, the whole conversation is rendered, and the reason is recorded. In both
cases, the tokens are divided by message, so that equal messages can share a node of the trace.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renderers_adapter.bridge_refusal import BridgeRefused
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
from rollout.records.kinds import ROOT, MessageTokens, PromptSource
from rollout.records.messages import CanonicalMessage
from rollout.session.image_table import ImageTable
from rollout.session.trace import DigestedMessage, PrefixMatch, Trace

_MAX_CACHED_PATHS = 4
"""The maximum number of paths whose joined tokens are cached. Other tokens are joined again when they are needed."""


@dataclass(frozen=True, slots=True)
class TokenPath:
    """The joined tokens from a root to a node.

    Attributes:
        last_node: the index of the node; ROOT if there are no tokens.
        ids: the logical ids, as they cross the queue.
        expanded: the expanded ids and the placeholders, as the engine sees them.
    """

    last_node: int
    ids: LogicalIds
    expanded: ExpandedPath

    def share_memory_with(self, longer_path: "TokenPath") -> "TokenPath":
        """Return this path with slices of a longer path's arrays; unchanged if the longer path does not extend it."""
        own_runs = self.expanded.runs
        if not own_runs or longer_path.expanded.runs[len(own_runs) - 1 : len(own_runs)] != own_runs[-1:]:
            return self
        return TokenPath(
            self.last_node, LogicalIds(longer_path.ids[: len(self.ids)]), longer_path.expanded.first_runs(len(own_runs))
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a turn, before the answer is sampled.

    Attributes:
        known_path: the known tokens; empty if the whole conversation is rendered.
        new_messages: the messages after the known tokens, in order, with their own tokens.
        generation_prompt: the tokens that begin the answer; empty if the answer continues an earlier turn of the model.
        full_path: the known path, the new messages and the generation prompt, joined; `last_node` is that of
            `known_path`.
        source: whether the prompt was bridged, or the reason for a full render.
    """

    known_path: TokenPath
    new_messages: tuple[DigestedMessage, ...]
    generation_prompt: LogicalIds
    full_path: TokenPath
    source: PromptSource

    @property
    def parse_prefix(self) -> LogicalIds:
        """The tokens before the answer that the parser of the answer needs.

        These are the tokens of the generation prompt. If it is empty, the answer continues an earlier turn of the
        model, and the parser needs the whole prompt.
        """
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
        self,
        messages: Sequence[CanonicalMessage],
        tools_digest: bytes,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        token_limit: int | None = None,
    ) -> Prompt:
        """Build the prompt for the policy's answer to `messages`.

        Args:
            messages: the whole conversation.
            tools_digest: the digest of the tools, see `digest_tools`.
            tools: the schemas of the tools; None without tools.
            token_limit: the number of tokens that fit into the model's context; None if it is unknown.

        Raises:
            TooManyTokens: the texts are far too long for the model's context.
            UnsupportedConversation: a full render and a bridge would make different tokens.
            PlaceholderError: the text of a message contains the image pad token.
        """
        prefix_match = self._trace.match_prefix(messages, tools_digest)
        source = self._prompt_source(prefix_match, len(messages))
        if prefix_match.last_answer_index != ROOT:
            last_answer = self._trace.nodes[prefix_match.last_answer_index]
            answer_run, new_messages = last_answer.tokens.run, messages[prefix_match.answered_messages :]
            parse_prefix = LogicalIds(answer_run.ids[: answer_run.sampled_from])
            completion = LogicalIds(answer_run.ids[answer_run.sampled_from :])
            if not len(parse_prefix) and last_answer.parent != ROOT:
                # In some templates, the model continues its turn after a tool's result. That turn began earlier.
                parse_prefix = concat_ids(*(run.ids for run in self._trace.path_runs(last_answer.parent)))
            try:
                bridged = await self._renderers.bridge(
                    [message.message for message in messages[: prefix_match.answered_messages]],
                    parse_prefix,
                    completion,
                    [message.message for message in new_messages],
                    tools,
                    token_limit=token_limit,
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
        rendered = await self._renderers.render([m.message for m in messages], tools, token_limit=token_limit)
        return self._assemble_prompt(self._empty_path, messages, rendered.segments, rendered.generation_prompt, source)

    def add_answer(self, prompt: Prompt, answer_node: int, completion: LogicalIds, logprobs: Logprobs) -> None:
        """Cache the joined tokens up to this answer, because the next turn probably extends them."""
        run = TokenRun(completion, 0, logprobs)
        expanded = extend_path(prompt.full_path.expanded, expand([run], pad_id=self._renderers.pad_id))
        self._cache_path(TokenPath(answer_node, concat_ids(prompt.full_path.ids, completion), expanded))

    def _prompt_source(self, prefix_match: PrefixMatch, message_count: int) -> PromptSource:
        """Return BRIDGE if an answer of the policy is known, or the reason for a full render."""
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
        """Make a prompt from the known tokens, and the tokens of the other messages and of the generation prompt."""
        new_messages = tuple(
            (message.digest, self._message_tokens(message, segment))
            for message, segment in zip(messages, segments, strict=True)
        )
        runs = [*(tokens.run for _, tokens in new_messages), TokenRun(generation_prompt, len(generation_prompt))]
        expanded = extend_path(known_path.expanded, expand(runs, pad_id=self._renderers.pad_id))
        full_path = TokenPath(known_path.last_node, concat_ids(known_path.ids, *(run.ids for run in runs)), expanded)
        self._share_memory(full_path)
        return Prompt(known_path.share_memory_with(full_path), new_messages, generation_prompt, full_path, source)

    def _message_tokens(self, message: CanonicalMessage, segment: MessageSegment) -> MessageTokens:
        """Return the message with its tokens and its images."""
        image_slots = tuple(
            ImageSlot(mm_hash, offset, self._image_table.token_count(mm_hash))
            for mm_hash, offset in zip(message.image_hashes, segment.image_offsets, strict=True)
        )
        run = TokenRun(segment.ids, len(segment.ids), images=image_slots)
        return MessageTokens(message.message, run, segment.content_spans)

    def _token_path_to(self, leaf: int) -> TokenPath:
        """Return the joined tokens from the root to a node, from the cache if they are there."""
        if leaf in self._cached_paths:
            self._cached_paths.move_to_end(leaf)
            return self._cached_paths[leaf]
        runs = self._trace.path_runs(leaf)
        return self._cache_path(
            TokenPath(leaf, concat_ids(*(run.ids for run in runs)), expand(runs, pad_id=self._renderers.pad_id))
        )

    def _share_memory(self, longest_path: TokenPath) -> None:
        """Let all cached paths that this path extends use its arrays, so that a long conversation is stored once."""
        for leaf, path in self._cached_paths.items():
            self._cached_paths[leaf] = path.share_memory_with(longest_path)

    def _cache_path(self, path: TokenPath) -> TokenPath:
        """Add a path to the cache, and remove the oldest path if there are too many; return the path."""
        self._share_memory(path)
        self._cached_paths[path.last_node] = path
        if len(self._cached_paths) > _MAX_CACHED_PATHS:
            self._cached_paths.popitem(last=False)
        return path
