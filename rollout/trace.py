"""The message graph of one rollout: a node per message, holding the tokens that message adds.

A conversation is a path from a root. Turns that extend each other share their whole path; a conversation that was cut,
compacted or forked shares the prefix that is still the same, message by message and token by token, and branches off
where it differs. Nothing is ever rewritten: nodes are only added, so an index is a name for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers_adapter.tokens import TokenRun
from rollout.messages import CanonicalMessage

ROOT = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """A message with its tokens, not yet in the graph."""

    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A message in the graph; `parent` is the node before it, or ROOT.

    Attributes:
        depth: how many nodes come before it on its path.
        answer: the last node up to here that the policy sampled in this rollout, or ROOT where it sampled none.
    """

    index: int
    parent: int
    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...]
    depth: int
    answer: int

    @property
    def sampled(self) -> bool:
        """Whether the policy wrote this message in this rollout."""
        return self.answer == self.index


@dataclass(frozen=True, slots=True)
class Known:
    """What a rollout knows of a conversation.

    Attributes:
        answer: the node up to which its tokens are known for certain, because the policy sampled there; ROOT if none.
        messages: how many of its messages were said before, in this order.
    """

    answer: int
    messages: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one turn added to the graph: `nodes` hang from `parent`, the last of them is `leaf`."""

    nodes: tuple[Node, ...]
    parent: int
    leaf: int


class Trace:
    """The graph of one rollout. Tools belong to a root: the same messages under other tools are another tree."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._children: dict[tuple[int, bytes], list[int]] = {}

    def match(self, messages: Sequence[CanonicalMessage], tools: bytes) -> Known:
        """How much of a conversation is known, message by message.

        Of several ways, the one with the latest answer counts; of several with equal answers, the one along which more
        of the conversation is known; then the youngest.
        """
        frontier, deepest, length = [ROOT], ROOT, 0
        for message in messages:
            if len(frontier) == 1:
                following = self._children.get(_key(frontier[0], message, tools))
            else:
                following = [c for at in frontier for c in self._children.get(_key(at, message, tools), ())]
            if not following:
                break
            frontier, length = following, length + 1
            answers = [at for at in following if self.nodes[at].answer == at]
            deepest = max(answers, default=deepest)
        if length:
            leading = max(frontier, key=lambda at: (self._depth(self.nodes[at].answer), at))
            if self._depth(self.nodes[leading].answer) == self._depth(deepest):
                deepest = self.nodes[leading].answer
        return Known(deepest, length)

    def path(self, leaf: int) -> list[Node]:
        """The nodes from a root to `leaf`."""
        found: list[Node] = []
        while leaf != ROOT:
            found.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return found[::-1]

    def commit(self, base: int, context: Sequence[Draft], answer: Draft, tools: bytes) -> Commit:
        """Add a turn below `base`: its new messages, then what the policy answered.

        A message that is already there with the very same tokens is used again, also one that a turn running at the
        same time added first. An answer is always a node of its own: it was sampled once more.
        """
        at, added = base, list[Node]()
        for draft in context:
            known = self._find(at, draft, tools)
            if known is None:
                known = self._add(at, draft, tools)
                added.append(known)
            at = known.index
        added.append(self._add(at, answer, tools))
        return Commit(tuple(added), added[0].parent, added[-1].index)

    def _find(self, parent: int, draft: Draft, tools: bytes) -> Node | None:
        for child in self._children.get(_key(parent, draft.message, tools), ()):
            node = self.nodes[child]
            if same_tokens(node.run, draft.run):
                return node
        return None

    def _depth(self, index: int) -> int:
        return -1 if index == ROOT else self.nodes[index].depth

    def _add(self, parent: int, draft: Draft, tools: bytes) -> Node:
        index = len(self.nodes)
        inherited = ROOT if parent == ROOT else self.nodes[parent].answer
        answer = index if draft.run.sampled_from < len(draft.run.ids) else inherited
        depth = self._depth(parent) + 1
        node = Node(index, parent, draft.message, draft.run, draft.content, depth, answer)
        self.nodes.append(node)
        self._children.setdefault(_key(parent, draft.message, tools), []).append(node.index)
        return node


def same_tokens(one: TokenRun, other: TokenRun) -> bool:
    """Whether two messages are the same to the policy: message identity alone does not make a prefix shared."""
    return one.images == other.images and np.array_equal(one.ids, other.ids)


def _key(parent: int, message: CanonicalMessage, tools: bytes) -> tuple[int, bytes]:
    return parent, message.identity + tools if parent == ROOT else message.identity
