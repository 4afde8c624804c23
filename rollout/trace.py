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
    """A message in the graph; `parent` is the node before it, or ROOT."""

    index: int
    parent: int
    message: CanonicalMessage
    run: TokenRun
    content: tuple[tuple[int, int], ...]

    @property
    def sampled(self) -> bool:
        """Whether the policy wrote this message in this rollout."""
        return self.run.sampled_from < len(self.run.ids)


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

    def match(self, messages: Sequence[CanonicalMessage], tools: bytes) -> list[Node]:
        """The longest path whose messages begin `messages`; of several equal ones, the latest."""
        frontier = [ROOT]
        for message in messages:
            following = [child for parent in frontier for child in self._children.get(_key(parent, message, tools), ())]
            if not following:
                break
            frontier = following
        return self.path(frontier[-1])

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
            if node.run.images == draft.run.images and np.array_equal(node.run.ids, draft.run.ids):
                return node
        return None

    def _add(self, parent: int, draft: Draft, tools: bytes) -> Node:
        node = Node(len(self.nodes), parent, draft.message, draft.run, draft.content)
        self.nodes.append(node)
        self._children.setdefault(_key(parent, draft.message, tools), []).append(node.index)
        return node


def _key(parent: int, message: CanonicalMessage, tools: bytes) -> tuple[int, bytes]:
    return parent, message.identity + tools if parent == ROOT else message.identity
