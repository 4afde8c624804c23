"""From a conversation to the prompt of a turn: what of it is known, and which tokens the rest adds.

The tokens of a known beginning are used as they are, up to the last answer that the policy sampled there; what follows
is bridged. Where that cannot be proven right, the whole conversation is rendered, and the reason is kept. Either way
every message has tokens of its own, so that the trace shares whatever turns out to be the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from renderers_adapter.adapter import BridgeRefused
from renderers_adapter.pool import RendererPool
from renderers_adapter.rendered import Segment
from renderers_adapter.tokens import Expanded, ImageSlot, LogicalIds, Logprobs, TokenRun, expand, extend, join, logical
from rollout.records.messages import CanonicalMessage
from rollout.session.image_table import ImageTable
from rollout.session.trace import ROOT, Draft, Known, Trace

_REMEMBERED = 4
"""Branches of a rollout whose joined tokens are kept, to be extended; any other one is joined again."""


class PromptSource(StrEnum):
    """Where a prompt's tokens come from: a bridge, or a full render and why.

    The last three are the adapter's own reasons, see `renderers_adapter.adapter.BridgeReason`.

    Attributes:
        BRIDGE: a known path was extended.
        FIRST: nothing was said in this rollout yet.
        ROOT: another conversation of the same rollout, such as a sub-agent's: its first message is new.
        RETRY: all of its messages are known, and the policy answered none of them before.
        COMPACTION: it begins like a known conversation, then its history was cut, summarised or edited.
    """

    BRIDGE = "bridge"
    FIRST = "first"
    ROOT = "root"
    RETRY = "retry"
    COMPACTION = "compaction"
    ASSISTANT = "assistant"
    THINKING = "thinking"
    REFUSED = "refused"


def told_sources(counted: Mapping[str, int]) -> str:
    """How many prompts were bridged, and how many rendered for which reason, as one line."""
    reasons = (f"{source}={counted.get(source, 0)}" for source in PromptSource if source is not PromptSource.BRIDGE)
    return f"bridge: {counted.get(PromptSource.BRIDGE, 0)}, rendered: {' '.join(reasons)}"


@dataclass(frozen=True, slots=True)
class Path:
    """The tokens from a root to a node, joined: as they cross the queue, and as the engine sees them."""

    leaf: int
    ids: LogicalIds
    expanded: Expanded

    def within(self, longer: "Path") -> "Path":
        """The same in the memory of a path that goes on from it; this one where that path does not."""
        runs = self.expanded.runs
        if not runs or longer.expanded.runs[len(runs) - 1 : len(runs)] != runs[-1:]:
            return self
        return Path(self.leaf, LogicalIds(longer.ids[: len(self.ids)]), longer.expanded.beginning(len(runs)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn before it is sampled: a known path, the messages to add below it, and what opens the answer.

    `whole` is all of that joined, with the path's own leaf.
    """

    base: Path
    drafts: tuple[Draft, ...]
    opening: LogicalIds
    whole: Path
    source: PromptSource

    @property
    def begun(self) -> LogicalIds:
        """Where the answer's turn was opened: its opening, or some place in all of it where the turn only goes on."""
        return self.opening if len(self.opening) else self.whole.ids


class Prompter:
    """Builds the prompts of one rollout."""

    def __init__(self, renderers: RendererPool, trace: Trace, images: ImageTable) -> None:
        self._renderers = renderers
        self._trace = trace
        self._images = images
        self._nothing = Path(ROOT, logical([]), expand([], pad_id=None))
        self._paths: OrderedDict[int, Path] = OrderedDict()

    async def prompt(
        self, messages: Sequence[CanonicalMessage], toolset: bytes, tools: Sequence[Mapping[str, Any]] | None
    ) -> Prompt:
        """The prompt that ends with the opening of the policy's answer to `messages`.

        Raises:
            UnsupportedConversation: no prompt would be right.
            PlaceholderError: a message's text spells the token that stands for an image.
        """
        known = self._trace.match(messages, toolset)
        source = self._source(known, len(messages))
        if known.answer != ROOT:
            answer = self._trace.nodes[known.answer]
            run, tail = answer.run, messages[answer.depth + 1 :]
            opening, completion = logical(run.ids[: run.sampled_from]), logical(run.ids[run.sampled_from :])
            if not len(opening) and answer.parent != ROOT:
                # Some templates let the model go on in its turn after a tool's result: it was opened further back.
                opening = join(*(node.run.ids for node in self._trace.path(answer.parent)))
            try:
                bridged = await self._renderers.bridge(opening, completion, [m.message for m in tail], tools)
            except BridgeRefused as refusal:
                source = PromptSource(refusal.reason)
            else:
                return self._join(self._path(known.answer), tail, bridged.segments, bridged.opening, source)
        rendered = await self._renderers.render([m.message for m in messages], tools)
        return self._join(self._nothing, messages, rendered.segments, rendered.opening, source)

    def answered(self, prompt: Prompt, leaf: int, completion: LogicalIds, logprobs: Logprobs) -> None:
        """Keep the joined tokens of a path that now ends with this answer: it is the likeliest to be extended."""
        run = TokenRun(completion, 0, logprobs)
        expanded = extend(prompt.whole.expanded, expand([run], pad_id=self._renderers.pad_id))
        self._keep(Path(leaf, join(prompt.whole.ids, completion), expanded))

    def _source(self, known: Known, length: int) -> PromptSource:
        if known.answer != ROOT:
            return PromptSource.BRIDGE
        if not self._trace.nodes:
            return PromptSource.FIRST
        if known.messages == 0:
            return PromptSource.ROOT
        return PromptSource.RETRY if known.messages == length else PromptSource.COMPACTION

    def _join(
        self,
        base: Path,
        messages: Sequence[CanonicalMessage],
        segments: Sequence[Segment],
        opening: LogicalIds,
        source: PromptSource,
    ) -> Prompt:
        drafts = tuple(self._draft(message, segment) for message, segment in zip(messages, segments, strict=True))
        runs = [*(draft.run for draft in drafts), TokenRun(opening, len(opening))]
        expanded = extend(base.expanded, expand(runs, pad_id=self._renderers.pad_id))
        whole = Path(base.leaf, join(base.ids, *(run.ids for run in runs)), expanded)
        self._share(whole)
        return Prompt(base.within(whole), drafts, opening, whole, source)

    def _draft(self, message: CanonicalMessage, segment: Segment) -> Draft:
        slots = tuple(
            ImageSlot(mm_hash, offset, self._images.tokens(mm_hash))
            for mm_hash, offset in zip(message.images, segment.image_offsets, strict=True)
        )
        return Draft(message, TokenRun(segment.ids, len(segment.ids), images=slots), segment.content)

    def _path(self, leaf: int) -> Path:
        if leaf in self._paths:
            self._paths.move_to_end(leaf)
            return self._paths[leaf]
        runs = [node.run for node in self._trace.path(leaf)]
        return self._keep(Path(leaf, join(*(run.ids for run in runs)), expand(runs, pad_id=self._renderers.pad_id)))

    def _share(self, longest: Path) -> None:
        """Let every path that this one goes on from lie in its memory: a long conversation is there once."""
        for leaf, path in self._paths.items():
            self._paths[leaf] = path.within(longest)

    def _keep(self, path: Path) -> Path:
        self._share(path)
        self._paths[path.leaf] = path
        if len(self._paths) > _REMEMBERED:
            self._paths.popitem(last=False)
        return path
